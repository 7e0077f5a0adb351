"""Runs a study of teachers, temperatures, losses and seeds, and reports it with intervals."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

# mmengine's own, at every config that is read; it would bury the progress.
warnings.filterwarnings('ignore', message='pkg_resources is deprecated')

from calkd_det.commands.demo.launch import run_until_stopped  # noqa: E402
from calkd_det.commands.study import Study, read_study  # noqa: E402
from calkd_det.commands.study.commands import list_commands, list_runs  # noqa: E402
from calkd_det.commands.study.report import write_reports  # noqa: E402
from calkd_det.commands.study.runner import find_run, look_at_machine, prepare, run_all  # noqa: E402
from calkd_det.commands.study.runs import expand  # noqa: E402
from calkd_det.errors import ConfigError  # noqa: E402

DESCRIPTION = """\
Run what is missing of one or several studies: data, teachers, their calibration on
held-out images, and students, each trained and evaluated by mmdet's own train.py.

Run again, it does only what is missing, however it was stopped: one row a finished
run stands in the results file. Runs that studies have in common are done once.
"""

EPILOG = """\
examples:
  python tools/study.py configs/studies/controlled.py --dry-run
  python tools/study.py configs/studies/{controlled,teachers,methods}.py --jobs 2
  python tools/study.py configs/studies/{controlled,teachers,methods}.py --report
  python tools/study.py configs/studies/coco.py --list-commands    # for a cluster
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', metavar='STUDY_CONFIG', nargs='+', type=Path)
    parser.add_argument(
        '--jobs',
        metavar='N',
        type=int,
        help='runs at the same time (default: one a GPU, or one a core with one thread each)',
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument('--dry-run', action='store_true', help='list the runs and what is done')
    what.add_argument(
        '--report',
        action='store_true',
        help='write tables and figures from the rows; runs nothing, reads nothing else',
    )
    what.add_argument('--run', metavar='ROW_ID', help='do this run alone')
    what.add_argument(
        '--list-commands',
        action='store_true',
        help='print a command for each run that is not done, and a Slurm array of them',
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    studies = [read_study(path) for path in args.configs]
    if args.report:
        for path in write_reports(studies):
            print(path)
        return
    runs = expand(studies)
    if args.dry_run:
        print(list_runs(runs))
    elif args.list_commands:
        print(list_commands(runs, args.configs))
    elif args.run:
        only = find_run(runs, args.run)
        machine = look_at_machine(args.jobs or 1, only.study.gpus_per_run)
        prepare([only.study], environment=machine.slots[0])
        run_all([only], machine)
    else:
        machine = look_at_machine(args.jobs, gpus_of(studies))
        prepare(studies, environment=machine.slots[0])
        run_all(runs, machine)


def gpus_of(studies: list[Study]) -> int:
    counts = {study.gpus_per_run for study in studies}
    if len(counts) > 1:
        raise ConfigError('the studies differ in study.gpus_per_run: run them one after another')
    return counts.pop()


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    return run_until_stopped(lambda: run(args), 'with what is missing')


if __name__ == '__main__':
    sys.exit(main())
