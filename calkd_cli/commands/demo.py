"""Show the whole method on a data set that is made on the spot.

Make the mini data set; train a teacher, a student alone, and the same student distilled without
(KD) and with calibration (CalKD), and with the teacher's feature maps beside, all by mmdet's own
train.py; write a report with pictures.
It is a small study (calkd study). Run again, it does only what is missing: an interrupted
training goes on from its last epoch. Stop it with Ctrl-C at any time.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from calkd_cli.commands.mini_data import NUM_IMAGES
from calkd_cli.options import at_least

EPOCHS = 12  # of the mini configs

EPILOG = """\
writes:
  DATA/                       the mini data set
  WORK_DIR/demo/report.md     the report, its pictures beside it
  WORK_DIR/demo/<run>/        a folder for each training, run.log is its output

"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.set_defaults(when_stopped='goes on from the last finished epoch')
    parser.add_argument(
        '--work-dir',
        metavar='WORK_DIR',
        type=Path,
        default=Path('work_dirs'),
        help='folder of all runs (default: %(default)s)',
    )
    parser.add_argument(
        '--data',
        metavar='DATA',
        type=Path,
        default=Path('data/mini'),
        help='folder of the mini data set (default: %(default)s)',
    )
    parser.add_argument(
        '--report-only',
        action='store_true',
        help='write the report anew from the files of finished runs',
    )
    quick = parser.add_argument_group(
        'for a quick look', 'Fewer epochs or images; nothing is learnt then that is worth a number.'
    )
    quick.add_argument(
        '--epochs', metavar='N', type=at_least(1), default=EPOCHS, help='default: %(default)s'
    )
    for split, count in NUM_IMAGES.items():
        quick.add_argument(
            f'--{split}-images',
            metavar='N',
            type=at_least(1),
            default=count,
            help='default: %(default)s',
        )


def run(args: Namespace) -> int:
    from calkd_det.commands.study.demo.demo import demo_study, write_demo_report
    from calkd_det.commands.study.runner import run_studies

    study = demo_study(
        args.work_dir / 'demo',
        args.data,
        args.epochs,
        {split: getattr(args, f'{split}_images') for split in NUM_IMAGES},
    )
    if not args.report_only:
        run_studies([study], None)
    print(f'\n{write_demo_report(study)}\n\nreport: {study.page}')
    return 0
