"""Find which of mmdet's detectors can be distilled, by classes, boxes and features.

Build the model of each config in mmdet's package as a student, without weights, and say why where
a teacher cannot teach it. Then let one detector of each kind be taught by itself for a step.
All configs take minutes.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

EPILOG = """\
An error that gives no reason makes the exit code 1.

examples:
  calkd zoo --out zoo.md
  calkd zoo --only 'retinanet/*'

"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        '--only',
        metavar='PATTERN',
        default='*',
        help='walk the configs FAMILY/NAME.py that match, * for any letters; default: all',
    )
    parser.add_argument(
        '--out', metavar='FILE', type=Path, help='write the page there; default: print it'
    )


def run(args: Namespace) -> int:
    from calkd_det.commands.zoo.page import format_page, summarise
    from calkd_det.commands.zoo.walk import examine_zoo, run_steps

    students = examine_zoo(args.only, _tell)
    steps = run_steps(students, _tell)
    page = format_page(students, steps, args.command_line)
    if args.out is None:
        print(page)
    else:
        args.out.write_text(page, encoding='utf-8')
        print(f'{args.out}: {summarise(students)}')
    faults = [student for student in students if student.fault]
    failed = [step for step in steps.values() if step.startswith('no:')]
    return 1 if faults or failed else 0


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
