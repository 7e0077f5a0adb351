"""Options that several commands have, and the types of their values."""

from __future__ import annotations

import contextlib
import json
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from mmengine.config import Config


class UsageError(Exception):
    """An argument is wrong that only the command itself can check."""


def at_least(minimum: int) -> Callable[[str], int]:
    """Return a type for whole numbers from ``minimum`` on."""

    def whole_number(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise ArgumentTypeError(f'must be a whole number >= {minimum}, not {text!r}')
        return int(text)

    return whole_number


def add_device(parser: ArgumentParser) -> None:
    """Add ``--device``; see :func:`find_device`."""
    parser.add_argument('--device', help='default: a GPU if torch sees one, else cpu')


def find_device(args: Namespace) -> torch.device:
    """Return the device of ``--device``.

    Raises:
        UsageError: torch cannot use it.
    """
    import torch

    name = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).split('\n')[0]
        raise UsageError(f'--device {name}: {first_line}') from error
    return device


def add_cfg_options(parser: ArgumentParser) -> None:
    """Add ``--cfg-options``; see :func:`read_config`."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        type=_key_and_value,
        default=[],
        metavar='KEY=VALUE',
        help="change the config, as for mmdet's train.py",
    )


def read_config(args: Namespace, name: Any = None) -> Config:
    """Read a config with the changes of ``--cfg-options``.

    Args:
        args: The parsed arguments.
        name: A path or ``mmdet::FAMILY/NAME.py``; None for ``args.config``.

    Raises:
        UsageError: It cannot be read, or an option does not fit it.
    """
    from calkd_det.config import read_config as read
    from calkd_det.errors import ConfigError

    try:
        return read(args.config if name is None else name, cfg_options(args))
    except ConfigError as error:
        raise UsageError(str(error)) from error


def cfg_options(args: Namespace) -> dict[str, Any]:
    """Return the values of ``--cfg-options`` by their dotted keys, parsed as mmengine does."""
    from mmengine.config import DictAction

    if not args.cfg_options:
        return {}
    parser = ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    return parser.parse_args(['--cfg-options', *args.cfg_options]).cfg_options


def add_json(parser: ArgumentParser, content: str) -> None:
    """Add ``--json``, which prints ``content`` in place of text."""
    parser.add_argument(
        '--json', action='store_true', help=f'print {content} as JSON on stdout, and nothing else'
    )


def keep_stdout_for_json(args: Namespace) -> AbstractContextManager:
    """With ``--json``, send what imports, pycocotools and loggers print in the block to stderr."""
    args.stdout = sys.stdout
    json_only = getattr(args, 'json', False)
    return contextlib.redirect_stdout(sys.stderr) if json_only else contextlib.nullcontext()


def print_json(args: Namespace, content: Any) -> None:
    """Print the answer to ``--json``."""
    print(json.dumps(content, indent=2), file=args.stdout)


def _key_and_value(text: str) -> str:
    key, equals, _ = text.partition('=')
    if not (key and equals):
        raise ArgumentTypeError(f'must be KEY=VALUE, not {text!r}')
    return text
