"""Split a COCO annotation file into disjoint parts with the same mixture of classes.

Images on which a teacher is calibrated or a detector is judged must be no others. The split is
stratified: of each class, each part has about the same share of images. The same file, parts and
seed give the same split. Categories and ids of images stay as they are, so labels do not move.
"""

from __future__ import annotations

import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

from calkd_cli.options import UsageError, at_least

EPILOG = """\
writes, under DIR:
  NAME.json     each part, a COCO annotation file
  split.json    the ids of the images of each part, and its number of objects of each class

examples:
  calkd split instances_val2017.json --out coco-parts --parts calibration=1000 minival=2000 minitest
  calkd split instances_train2017.json --out coco-parts --parts calibration=2000 train

"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument('ann', type=Path, metavar='ANN', help='COCO annotation file')
    parser.add_argument('--out', type=Path, metavar='DIR', required=True, help='folder to write to')
    parser.add_argument(
        '--parts',
        nargs='+',
        type=_part,
        required=True,
        metavar='NAME=IMAGES',
        help='name and number of images of each part; a NAME alone, at most one, has all images '
        'that are in no other part',
    )
    parser.add_argument('--seed', type=at_least(0), default=0, metavar='N', help='default: 0')


def run(args: Namespace) -> int:
    names = [name for name, _ in args.parts]
    if len(set(names)) < len(names):
        raise UsageError(f'--parts: two parts have the same name: {" ".join(names)}')
    if sum(size is None for _, size in args.parts) > 1:
        raise UsageError('--parts: at most one part can be without a number of images')
    from calkd_det.commands.split import split, summary

    print(summary(split(args.ann, args.out, dict(args.parts), args.seed)))
    return 0


def _part(text: str) -> tuple[str, int | None]:
    name, equals, size = text.partition('=')
    if not re.fullmatch(r'\w[\w.-]*', name) or name == 'split':
        raise ArgumentTypeError(
            f'{text!r} is no name of a part, such as minival=2500: letters, digits and _ . - but '
            "not 'split'"
        )
    return name, at_least(1)(size) if equals else None
