"""Strips a training checkpoint to what inference needs, readable where CalKD-Det is not installed.

Since torch 2.6, mmdet refuses every training checkpoint of mmengine (its log buffers are no plain
data) unless their classes are declared safe, which importing calkd_det does. What this writes
holds weights and plain data only, so that any mmdet reads it, with the plain config.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from calkd_det.errors import ConfigError

KEPT = ('meta', 'state_dict')


def export_student(source: Path, target: Path) -> None:
    """Writes weights and meta data of a checkpoint to a file of their own.

    Args:
        source: A checkpoint written by mmengine's ``Runner``.
        target: The file to write. It must not exist.

    Raises:
        ConfigError: ``source`` is missing or no training checkpoint, or ``target`` exists.
    """
    if target.exists():
        raise ConfigError(f"'{target}' exists already: name another file, or remove it first")
    try:
        checkpoint: Any = torch.load(source, map_location='cpu', weights_only=True)
    except FileNotFoundError:
        raise ConfigError(f"there is no file '{source}'") from None
    # Torch's errors for a broken file differ by version and by where it breaks.
    except Exception as error:
        reason = str(error).strip().split('\n')[0]
        raise ConfigError(f"cannot read '{source}' ({type(error).__name__}: {reason})") from error
    if not (isinstance(checkpoint, Mapping) and 'state_dict' in checkpoint):
        raise ConfigError(f"'{source}' is no training checkpoint: it has no 'state_dict'")
    target.parent.mkdir(parents=True, exist_ok=True)
    torch.save({key: checkpoint[key] for key in KEPT if key in checkpoint}, target)
    unsafe = plain_mmdet_refuses(target)
    if unsafe:
        target.unlink()
        raise ConfigError(f"'{source}' holds objects that are no plain data in 'meta': {unsafe}")


def plain_mmdet_refuses(path: Path) -> list[str]:
    """Names what a file holds that ``torch.load`` refuses where calkd_det is not imported."""
    declared = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    finally:
        torch.serialization.add_safe_globals(declared)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('checkpoint', type=Path, help='training checkpoint, e.g. epoch_12.pth')
    parser.add_argument('out', type=Path, help='file to write, e.g. student.pth')
    args = parser.parse_args(argv)
    try:
        export_student(args.checkpoint, args.out)
    except ConfigError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    before, after = (path.stat().st_size / 2**20 for path in (args.checkpoint, args.out))
    print(f'{args.out}: {after:.1f} MiB, was {before:.1f} MiB')
    return 0


if __name__ == '__main__':
    sys.exit(main())
