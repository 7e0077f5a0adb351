"""Run what is missing of one or several studies, and report them with intervals.

A study has data, teachers, their calibration on held-out images, and students, each trained
and evaluated by mmdet's own train.py. Run again, it does only what is missing, however it was
stopped: one row for each finished run stands in the results file. Runs that studies have in
common are done once.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from calkd_cli.options import add_cfg_options, at_least, cfg_options

EPILOG = """\
examples:
  calkd study configs/studies/controlled.py --dry-run
  calkd study configs/studies/{controlled,teachers,methods}.py --jobs 2
  calkd study configs/studies/{controlled,teachers,methods}.py --report
  calkd study configs/studies/coco.py --list-commands    # for a cluster

"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.set_defaults(when_stopped='goes on with what is missing')
    parser.add_argument('configs', metavar='STUDY_CONFIG', nargs='+')
    parser.add_argument(
        '--jobs',
        metavar='N',
        type=at_least(1),
        help='runs at the same time (default: one a GPU, or one a core with one thread each)',
    )
    add_cfg_options(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument('--dry-run', action='store_true', help='list the runs and what is done')
    what.add_argument(
        '--report',
        action='store_true',
        help='write tables and figures from the rows; runs nothing, reads nothing else',
    )
    what.add_argument('--run', dest='run_id', metavar='ROW_ID', help='do this run alone')
    what.add_argument(
        '--list-commands',
        action='store_true',
        help='print a command for each run that is not done, and a Slurm array of them',
    )


def run(args: Namespace) -> int:
    from calkd_det.commands.study.report import write_reports
    from calkd_det.commands.study.runner import run_one, run_studies
    from calkd_det.commands.study.runs import expand
    from calkd_det.commands.study.settings import read_study
    from calkd_det.commands.study.state import list_commands, list_runs

    options = cfg_options(args)
    studies = [read_study(path, options) for path in args.configs]
    if args.report:
        for path in write_reports(studies):
            print(path)
    elif args.dry_run:
        print(list_runs(expand(studies)))
    elif args.list_commands:
        print(list_commands(expand(studies), [*args.configs], args.cfg_options))
    elif args.run_id:
        run_one(studies, args.run_id, args.jobs)
    else:
        run_studies(studies, args.jobs)
    return 0
