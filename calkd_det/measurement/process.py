"""Measure in a process of its own, as a study does it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmdet.utils import register_all_modules
from mmengine.config import Config

from calkd_det.errors import CalKDError
from calkd_det.measurement.json_file import write_json


def measure_in_process(
    measure: Callable[..., Any], options: Sequence[str], argv: Sequence[str] | None
) -> int:
    """Read the arguments, measure a detector and write what was found as JSON.

    Args:
        measure: Called with the config, the checkpoint, a tuple of the paths of data if there are
            any, and by keyword ``max_images`` and ``device``.
        options: Names of the options that are paths of data, all required.
        argv: The arguments: ``CONFIG CHECKPOINT --out FILE``, those options, and
            ``--max-images``. None for those of the process.

    Returns:
        The exit code, 1 for an error of the user's, which is printed.
    """
    parser = argparse.ArgumentParser(description=measure.__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    for name in options:
        parser.add_argument(f'--{name}', type=Path, required=True)
    parser.add_argument('--max-images', type=int)
    parser.add_argument('--out', type=Path, required=True)
    args = parser.parse_args(argv)
    register_all_modules(init_default_scope=True)
    data = [tuple(getattr(args, name) for name in options)] if options else []
    try:
        found = measure(
            Config.fromfile(args.config),
            args.checkpoint,
            *data,
            max_images=args.max_images,
            device='cuda' if torch.cuda.is_available() else 'cpu',
        )
    except CalKDError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    write_json(args.out, found)
    return 0
