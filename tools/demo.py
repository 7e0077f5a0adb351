"""The whole method on a data set that is made on the spot: train, distil, test, report."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

# mmengine's own, at every config that is read; it would bury the progress.
warnings.filterwarnings('ignore', message='pkg_resources is deprecated')

from calkd_det.commands.demo import Plan, write_report  # noqa: E402
from calkd_det.commands.demo.demo import look_at_machine, run_demo  # noqa: E402
from calkd_det.commands.demo.launch import run_until_stopped  # noqa: E402
from calkd_det.commands.demo.plan import DEFAULT_DATA, DEFAULT_EPOCHS, DEFAULT_WORK_DIR  # noqa: E402
from calkd_det.datasets.mini import DEFAULT_NUM_IMAGES, write_mini_dataset  # noqa: E402

DESCRIPTION = """\
Make the mini data set; train a teacher, a student alone, and the same student
distilled without (KD) and with calibration (CalKD), all by mmdet's own train.py;
test each by mmdet's own test.py; write a report with pictures.

Run again, it does only what is missing: an interrupted training goes on from its
last epoch. Stop it with Ctrl-C at any time.
"""

EPILOG = """\
writes:
  DATA/                         the mini data set
  WORK_DIR/<config>/            a folder for each training, demo.log is its output
  WORK_DIR/demo/report.md       the report, curves.png and detections.png beside it
  WORK_DIR/demo/test/<name>/    metrics and detections of each test
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--work-dir',
        metavar='WORK_DIR',
        type=Path,
        default=DEFAULT_WORK_DIR,
        help='folder of all runs (default: %(default)s)',
    )
    parser.add_argument(
        '--data',
        metavar='DATA',
        type=Path,
        default=DEFAULT_DATA,
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
        '--epochs', metavar='N', type=int, default=DEFAULT_EPOCHS, help='default: %(default)s'
    )
    for split, count in DEFAULT_NUM_IMAGES.items():
        quick.add_argument(
            f'--{split}-images', metavar='N', type=int, default=count, help='default: %(default)s'
        )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    plan = Plan(args.work_dir, args.data, args.epochs, args.train_images)
    if not args.report_only:
        counts = {split: getattr(args, f'{split}_images') for split in DEFAULT_NUM_IMAGES}
        dataset = write_mini_dataset(args.data, num_images=counts, progress=True)
        print(f'{dataset.root}: {"made" if dataset.created else "already there"}')
        run_demo(plan, look_at_machine())
    report = write_report(plan)
    print(f'\n{report.summary}\n\nreport: {report.path}')


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    return run_until_stopped(lambda: run(args), 'from the last finished epoch')


if __name__ == '__main__':
    sys.exit(main())
