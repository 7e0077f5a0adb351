"""Says before a long run whether a CalKD config is ready: teacher, data, and one dry step."""

from __future__ import annotations

import argparse
import sys
import textwrap
import warnings
from pathlib import Path

# mmengine's, mmcv's and torch's own, of no use to who reads the findings.
warnings.filterwarnings('ignore')

import torch  # noqa: E402
from mmengine.config import Config, DictAction  # noqa: E402

from calkd_det.commands.doctor import Finding, examine, verdict  # noqa: E402

DESCRIPTION = """\
Look a CalKD config over before a long run: versions, the teacher's file, classes and
normalisation, its mAP and calibration on a few validation images, and one dry training
step. Nothing is trained and nothing written.
"""

EPILOG = """\
exit code: 0 ready (warnings are allowed), 1 errors, 2 wrong arguments
"""

WIDTH = 100
INDENT = 26


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'must be a whole number >= 1, not {text!r}')
    return int(text)


def usable_device(text: str) -> torch.device:
    try:
        device = torch.device(text)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(str(error).split('\n')[0]) from None
    return device


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', type=Path, help='the config to train with')
    parser.add_argument(
        '--images',
        type=positive,
        metavar='N',
        default=32,
        help="validation images for the teacher's mAP and calibration; default: %(default)s",
    )
    parser.add_argument(
        '--device',
        type=usable_device,
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='default: a GPU if torch sees one, else cpu',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help="as for mmdet's train.py",
    )
    args = parser.parse_args(argv)
    try:
        args.cfg = Config.fromfile(args.config)
        args.cfg.merge_from_dict(args.cfg_options)
    # mmengine reports a bad config by whatever its parser raises.
    except Exception as error:
        parser.error(f"cannot read '{args.config}' ({type(error).__name__}: {error})")
    return args


def line(finding: Finding) -> str:
    head = f'{finding.mark:<9}{finding.title:<17}'
    return textwrap.fill(
        head + finding.text,
        WIDTH,
        subsequent_indent=' ' * INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    found = []
    for finding in examine(args.cfg, device=args.device, num_images=args.images):
        found.append(finding)
        print(line(finding), flush=True)
    print(f'\n{verdict(found)}')
    return int(any(finding.mark == 'error' for finding in found))


if __name__ == '__main__':
    sys.exit(main())
