"""Load checkpoints without running code that they may hold, on every torch from 2.1 on.

A checkpoint written by mmengine's ``Runner`` carries more than weights: its log buffers, numpy
scalars, and the meta information of the data set, with arrays and nested dicts. The few globals
that such a file needs are declared safe here, and nothing else. Since torch 2.6 ``torch.load``
unpickles weights only. Without this declaration ``--resume`` and ``tools/test.py`` stop.
"""

from __future__ import annotations

import pickletools
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from pickle import PROTO, UnpicklingError
from typing import Any, BinaryIO

import torch
from mmengine.utils import digit_version

from calkd_det import restricted_pickle
from calkd_det.safe_globals import allowed_globals, current_name, safe_globals

_LEGACY_PICKLES = 4  # before 1.6 torch wrote three small pickles and then that of the content


def load_checkpoint(file: str | Path | BinaryIO, map_location: Any = 'cpu') -> Any:
    """Load a checkpoint of tensors, plain data and what mmengine's ``Runner`` adds.

    Args:
        file: A path, or a file opened for reading bytes.
        map_location: As in ``torch.load``.

    Raises:
        OSError: The file cannot be read.
        pickle.UnpicklingError: The file holds anything else.
        Exception: What ``torch.load`` raises on a damaged file, which depends on its version.
    """
    if torch_takes_named_globals():
        return torch.load(file, map_location=map_location, weights_only=True)
    if isinstance(file, (str, Path)) and Path(file).is_file() and _is_tar(file):
        raise UnpicklingError('a .tar file of an old torch, whose loading cannot be restricted')
    # weights_only=True and a pickle module exclude each other: the module is what restricts.
    return torch.load(
        file, map_location=map_location, weights_only=False, pickle_module=restricted_pickle
    )


def register_safe_globals() -> None:
    """Declare what a ``Runner`` checkpoint holds safe for ``torch.load(weights_only=True)``."""
    if torch_takes_named_globals():  # below, safe loading is not the default
        # With the name, as torch keeps them apart from those that others declare for a while:
        # onedl-mmengine takes its own back after each file that it loads.
        torch.serialization.add_safe_globals(
            [(value, name) for name, value in safe_globals().items()]
        )


def refused_globals(path: str | Path) -> list[str]:
    """Return the names in a checkpoint that :func:`load_checkpoint` refuses, without loading it.

    The list is empty for a file that is no checkpoint.

    Args:
        path: A checkpoint.
    """
    allowed = allowed_globals()
    names = dict.fromkeys(name for name in _globals_in(Path(path)) if name not in allowed)
    return list(names)


def torch_takes_named_globals() -> bool:
    """Return whether globals can be declared safe under the name that a file gives them."""
    return digit_version(torch.__version__) >= digit_version('2.6.0')


def _globals_in(path: Path) -> Iterator[str]:
    with path.open('rb') as file:
        try:
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    for member in archive.namelist():
                        if member.endswith('/data.pkl'):
                            yield from _globals_of(archive.read(member))
            elif _starts_with(file, PROTO):
                for _ in range(_LEGACY_PICKLES):
                    yield from _globals_of(file)
        # The pickle is truncated, or it is none: no further names can be read.
        except (ValueError, EOFError, IndexError, zipfile.BadZipFile):
            return


def _starts_with(file: BinaryIO, prefix: bytes) -> bool:
    file.seek(0)
    found = file.read(len(prefix))
    file.seek(0)
    return found == prefix


def _globals_of(pickled: bytes | BinaryIO) -> Iterator[str]:
    for operation, argument, _ in pickletools.genops(pickled):
        if operation.name == 'GLOBAL':
            yield current_name(*argument.split(' ', 1))


def _is_tar(path: str | Path) -> bool:
    try:
        with tarfile.open(path, mode='r:'):
            return True
    except tarfile.TarError:
        return False
