"""Parse the command line, run the command, and turn how it ends into an exit code."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import pkgutil
import runpy
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from rich_argparse import RawDescriptionRichHelpFormatter

from calkd_cli import commands
from calkd_cli.options import UsageError, keep_stdout_for_json

DONE, FAILED, WRONG_ARGUMENTS, STOPPED = 0, 1, 2, 130
EXIT_CODES = (
    f'exit codes: {DONE} done, {FAILED} a finding or a failure, '
    f'{WRONG_ARGUMENTS} wrong arguments, {STOPPED} stopped by Ctrl-C'
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The words after ``calkd``; None for those of this process.

    Returns:
        The exit code.

    Raises:
        SystemExit: With code 2, for wrong arguments; with code 0, for ``--help`` and
            ``--version``.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    args = build_parser().parse_args(argv)
    args.command_line = shlex.join(['calkd', *argv])
    # Those of mmengine, mmcv and torch; a user who asked for warnings gets them.
    if not sys.warnoptions:
        warnings.simplefilter('ignore')
    _stop_as_by_ctrl_c()
    try:
        with keep_stdout_for_json(args):
            return args.run(args)
    except KeyboardInterrupt:
        print(f'\nstopped; the same command {args.when_stopped}', file=sys.stderr)
        return STOPPED
    except UsageError as error:
        args.parser.error(str(error))
    except Exception as error:
        if not _is_for_the_user(error):
            raise
        print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
        return FAILED


def run_command(name: str, argv: Sequence[str] | None = None) -> int:
    """Run one command by its name, for a script that stands for it; see :func:`main`."""
    return main([name, *(sys.argv[1:] if argv is None else argv)])


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands: one for each file in ``calkd_cli/commands``."""
    parser = argparse.ArgumentParser(
        prog='calkd',
        description='Distil MMDetection detectors from calibrated teachers.',
        epilog=EXIT_CODES,
        formatter_class=RawDescriptionRichHelpFormatter,
    )
    parser.add_argument('--version', action='version', version=f'calkd {_version()}')
    children = parser.add_subparsers(metavar='COMMAND', required=True)
    for info in pkgutil.iter_modules(commands.__path__):
        module = importlib.import_module(f'{commands.__name__}.{info.name}')
        _add_command(children, info.name.replace('_', '-'), module)
    return parser


def _version() -> str:
    """Read the version from its file: importing the package would import torch."""
    package = Path(importlib.util.find_spec('calkd_det').origin).parent
    return runpy.run_path(str(package / 'version.py'))['__version__']


def _add_command(
    children: argparse._SubParsersAction, name: str, module: ModuleType
) -> argparse.ArgumentParser:
    summary = module.__doc__.split('\n', maxsplit=1)[0].rstrip('.')
    child = children.add_parser(
        name,
        help=summary[0].lower() + summary[1:],
        description=module.__doc__,
        epilog='\n'.join([*getattr(module, 'EPILOG', '').splitlines(), EXIT_CODES]),
        formatter_class=RawDescriptionRichHelpFormatter,
    )
    child.set_defaults(run=module.run, parser=child, when_stopped='starts over')
    module.add_arguments(child)
    return child


def _stop_as_by_ctrl_c() -> None:
    """Let a plain kill and a closed terminal end subprocesses as well as Ctrl-C does."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler)


def _is_for_the_user(error: Exception) -> bool:
    """Whether the message of an error says all that a user needs, so that no traceback is shown."""
    if isinstance(error, ImportError):
        return str(error).startswith('CalKD-Det')
    if isinstance(error, OSError):  # a full disk, a folder that cannot be written
        return True
    errors = sys.modules.get('calkd_det.errors')
    return errors is not None and isinstance(error, errors.CalKDError)
