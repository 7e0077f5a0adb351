"""Measure memory and time of the losses of a dense head and of feature maps.

Random values, on the CPU.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from calkd_cli.options import at_least


def add_arguments(parser: ArgumentParser) -> None:
    for name, value in (('samples', 50_000), ('classes', 80), ('rounds', 5)):
        parser.add_argument(
            f'--{name}', type=at_least(1), metavar='N', default=value, help='default: %(default)s'
        )
    parser.add_argument('--threads', type=at_least(1), metavar='N', help="default: torch's")
    parser.add_argument(
        '--dtype',
        choices=['float32', 'float16', 'bfloat16'],
        default='float32',
        help='of the logits; default: %(default)s',
    )


def run(args: Namespace) -> int:
    import torch

    from calkd_det.commands.benchmark.loss_cost import cost_table, measure_losses

    torch.set_num_threads(args.threads or torch.get_num_threads())
    dtype = getattr(torch, args.dtype)
    costs = measure_losses(args.samples, args.classes, dtype, args.rounds)
    print(cost_table(costs, args.samples, args.classes, dtype))
    return 0
