"""Strip a training checkpoint to what inference needs.

Since torch 2.6, mmdet refuses every training checkpoint of mmengine (its log buffers are no plain
data) unless their classes are declared safe, which importing calkd_det does. What this writes
holds weights and plain data only, so that any mmdet reads it, with the plain config.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument('checkpoint', type=Path, help='training checkpoint, e.g. epoch_12.pth')
    parser.add_argument('out', type=Path, help='file to write, e.g. student.pth')


def run(args: Namespace) -> int:
    from calkd_det.commands.export import export_student

    export_student(args.checkpoint, args.out)
    before, after = (path.stat().st_size / 2**20 for path in (args.checkpoint, args.out))
    print(f'{args.out}: {after:.1f} MiB, was {before:.1f} MiB')
    return 0
