"""Fit a detector's temperature and other calibrators on held-out images.

--target boxes calibrates its final boxes instead, class by class, for its use and evaluation.

Report its calibration before and after. Use images that neither trained the teacher nor judge
the student: the config's own train and test images are no such, so there is no default.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from calkd_cli.options import (
    UsageError,
    add_cfg_options,
    add_device,
    add_json,
    at_least,
    find_device,
    print_json,
    read_config,
)

EPILOG = """\
writes, under DIR:
  temperature.json      parameters of every calibrator that fits the head, for the config
  report.md             errors before and after, by class, and which calibrator is recommended
  report.html           the same in one file, pictures inside
  reliability_*.png     a diagram for each
with --target boxes:
  boxes.json            parameters and score thresholds, for BoxCalibrationHook in a test
"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument('config', help="the detector's config, a path or mmdet::FAMILY/NAME.py")
    parser.add_argument('checkpoint', help='its weights, a path or URL')
    parser.add_argument('--ann', type=Path, metavar='FILE', help='COCO annotation file (required)')
    parser.add_argument(
        '--images', type=Path, metavar='FOLDER', help='folder of its images (required)'
    )
    parser.add_argument(
        '--train-ann',
        type=Path,
        metavar='FILE',
        help='annotation file of images that the detector was trained on, to compare its fit there',
    )
    parser.add_argument(
        '--train-images', type=Path, metavar='FOLDER', help='folder of these images'
    )
    parser.add_argument(
        '--out', type=Path, metavar='DIR', help='default: calibration/<name of the config>'
    )
    parser.add_argument(
        '--target',
        choices=('teacher', 'boxes'),
        default='teacher',
        help='what to calibrate: the class logits that a student learns from, or final boxes; '
        'default: teacher',
    )
    parser.add_argument(
        '--method',
        choices=('platt', 'isotonic'),
        help='calibrator of each class for --target boxes; default: platt',
    )
    parser.add_argument(
        '--fit-to',
        choices=('iou', 'precision'),
        help='what a calibrated score is for --target boxes: the expected IoU, or the probability '
        'of a true positive at IoU 0.5; default: iou',
    )
    parser.add_argument('--batch-size', type=at_least(1), metavar='N', default=4, help='default: 4')
    parser.add_argument(
        '--workers',
        type=at_least(0),
        metavar='N',
        default=2,
        help='processes to load images; default: 2',
    )
    add_device(parser)
    parser.add_argument(
        '--seed', type=at_least(0), default=0, help='of sampling and bootstrap; default: 0'
    )
    parser.add_argument(
        '--max-images', type=at_least(1), metavar='N', help='only the first N, for a quick look'
    )
    add_cfg_options(parser)
    add_json(parser, 'the content of temperature.json or boxes.json')


def run(args: Namespace) -> int:
    if args.ann is None or args.images is None:
        raise UsageError(
            'give --ann and --images: a COCO annotation file and the folder of its images, which '
            'neither trained the teacher nor judge the student'
        )
    if args.train_ann is not None or args.train_images is not None:
        if args.target == 'boxes':
            raise UsageError('--train-ann and --train-images are not for --target boxes')
        if args.train_ann is None or args.train_images is None:
            raise UsageError('give --train-ann and --train-images both, or neither')
    if args.target == 'boxes':
        return _run_boxes(args)
    if args.method or args.fit_to:
        option = '--method' if args.method else '--fit-to'
        raise UsageError(f'{option} is for --target boxes: add it, or leave out {option}')
    own_training = None if args.train_ann is None else (args.train_ann, args.train_images)
    from calkd_det.commands.calibrate import calibrate, summary
    from calkd_det.measurement.calibration_report import to_json, write_report

    out = _out(args)
    options = _common_options(args)
    report = calibrate(**options, own_training=own_training, out=out)
    files = write_report(report, out)
    if args.json:
        print_json(args, to_json(report))
    else:
        print(f'\n{summary(report, out)}\n\nreport: {files[1]}')
    return 0


def _run_boxes(args: Namespace) -> int:
    from calkd_det.commands.calibrate_boxes import calibrate_boxes, summary, write_result

    options = _common_options(args)
    result = calibrate_boxes(**options, method=args.method or 'platt', fit_to=args.fit_to or 'iou')
    path = write_result(result, _out(args))
    if args.json:
        print_json(args, result.to_plain())
    else:
        print(f'\n{summary(result, path)}')
    return 0


def _out(args: Namespace) -> Path:
    return args.out or Path('calibration', Path(args.config).stem)


def _common_options(args: Namespace) -> dict[str, Any]:
    """Return what the calibrations of samples and of boxes are both given."""
    return dict(
        cfg=read_config(args),
        config=args.config,
        checkpoint=args.checkpoint,
        ann_file=args.ann,
        images=args.images,
        device=find_device(args),
        batch_size=args.batch_size,
        num_workers=args.workers,
        max_images=args.max_images,
        seed=args.seed,
    )
