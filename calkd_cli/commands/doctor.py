"""Check a CalKD config before a long run.

Look over versions, the teacher's file, classes and normalisation, its mAP and calibration
on a few validation images, and one dry training step. Nothing is trained or written.
"""

from __future__ import annotations

import dataclasses
import textwrap
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from calkd_cli.options import (
    add_cfg_options,
    add_device,
    add_json,
    at_least,
    find_device,
    print_json,
    read_config,
)

if TYPE_CHECKING:
    from calkd_det.commands.doctor import Finding

EPILOG = 'Warnings leave the exit code 0; an error makes it 1.\n'
WIDTH = 100
INDENT = 26


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument('config', help='the config to train with')
    parser.add_argument(
        '--images',
        type=at_least(1),
        metavar='N',
        default=32,
        help="validation images for the teacher's mAP and calibration; default: %(default)s",
    )
    add_device(parser)
    add_cfg_options(parser)
    add_json(parser, 'the findings')


def run(args: Namespace) -> int:
    from calkd_det.commands.doctor import examine, verdict

    cfg = read_config(args)
    device = find_device(args)
    findings = []
    for finding in examine(cfg, device=device, num_images=args.images):
        findings.append(finding)
        if not args.json:
            print(format_finding(finding), flush=True)
    ready = all(finding.mark != 'error' for finding in findings)
    if args.json:
        entries = [dataclasses.asdict(finding) for finding in findings]
        print_json(args, {'ready': ready, 'findings': entries})
    else:
        print(f'\n{verdict(findings)}')
    return 0 if ready else 1


def format_finding(finding: Finding) -> str:
    """Return a finding as a paragraph for the terminal."""
    head = f'{finding.mark:<9}{finding.title:<17}'
    return textwrap.fill(
        head + finding.text,
        WIDTH,
        subsequent_indent=' ' * INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )
