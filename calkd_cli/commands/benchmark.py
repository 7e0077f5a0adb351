"""Time a distilled training step.

Random weights and a batch of noise: the plain student's step, the teacher's bare inference, this
project's step, each of its losses and the rest of what it adds, all in turn in one process.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from calkd_cli.options import (
    add_cfg_options,
    add_device,
    at_least,
    find_device,
    read_config,
)

EPILOG = """\
writes step.json and step.md into OUT after each config
"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='CalKD configs')
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/benchmark_step'), help='default: %(default)s'
    )
    parser.add_argument(
        '--page',
        type=Path,
        help='a page with <!-- begin step -->: write the table there, and the files into a folder '
        'of its name beside it',
    )
    add_device(parser)
    parser.add_argument(
        '--image-size',
        nargs=2,
        type=at_least(1),
        metavar=('H', 'W'),
        help='default: 800 1333 on a GPU, 320 320 on a CPU',
    )
    parser.add_argument(
        '--images', type=at_least(1), metavar='N', help='default: 8 on a GPU, 2 on a CPU'
    )
    parser.add_argument(
        '--rounds', type=at_least(1), metavar='N', default=15, help='default: %(default)s'
    )
    parser.add_argument(
        '--warm-up', type=at_least(0), metavar='N', default=2, help='default: %(default)s'
    )
    parser.add_argument('--threads', type=at_least(1), metavar='N', help="default: torch's")
    parser.add_argument(
        '--amp', action='store_true', help='autocast: float16 on a GPU, bfloat16 on a CPU'
    )
    parser.add_argument(
        '--precision',
        choices=['bfloat16', 'float16'],
        help='also time a teacher of this precision',
    )
    parser.add_argument('--no-memory', action='store_true', help='leave peak memory out')
    add_cfg_options(parser)


def run(args: Namespace) -> int:
    import torch

    from calkd_det.commands.benchmark.run import Settings, run_benchmark
    from calkd_det.commands.pages import fill_blocks

    device = find_device(args)
    gpu = device.type == 'cuda'
    settings = Settings(
        command_line=args.command_line,
        device=device,
        image_size=tuple(args.image_size or ((800, 1333) if gpu else (320, 320))),
        images=args.images or (8 if gpu else 2),
        rounds=args.rounds,
        warm_up=args.warm_up,
        threads=args.threads or torch.get_num_threads(),
        amp=args.amp,
        precision=args.precision,
        memory=not args.no_memory,
    )
    configs = {name: read_config(args, name) for name in args.configs}
    if args.page is not None:
        # Before the hours that the measurement may take.
        fill_blocks(args.page.read_text('utf-8'), {'step': ''})
    out = args.out if args.page is None else args.page.with_suffix('')
    print(run_benchmark(configs, settings, out, args.page))
    return 0
