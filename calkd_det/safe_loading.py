"""Load checkpoints without running code that they may hold, on every torch from 2.1 on.

A checkpoint written by mmengine's ``Runner`` carries more than weights: its log buffers, numpy
scalars, and the meta information of the data set, with arrays and nested dicts. The few globals
that such a file needs are declared safe here, and nothing else. Since torch 2.6 ``torch.load``
unpickles weights only. Without this declaration ``--resume`` and ``tools/test.py`` stop.
"""

from __future__ import annotations

import codecs
import pickletools
import tarfile
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter, OrderedDict
from collections.abc import Iterator
from pathlib import Path
from pickle import PROTO, UnpicklingError
from typing import Any, BinaryIO, Callable

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version

_GETATTR = 'builtins.getattr'
_STATISTICS = ('min', 'max', 'current', 'mean')
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
    from calkd_det import restricted_pickle

    if isinstance(file, (str, Path)) and Path(file).is_file() and _is_tar(file):
        raise UnpicklingError('a .tar file of an old torch, whose loading cannot be restricted')
    # weights_only=True and a pickle module exclude each other: the module is what restricts.
    return torch.load(
        file, map_location=map_location, weights_only=False, pickle_module=restricted_pickle
    )


def register_safe_globals() -> None:
    """Declare what a ``Runner`` checkpoint holds safe for ``torch.load(weights_only=True)``."""
    if torch_takes_named_globals():  # below, safe loading is not the default
        torch.serialization.add_safe_globals(
            [
                value if _name_of(value) == name else (value, name)
                for name, value in safe_globals().items()
            ]
        )


def safe_globals() -> dict[str, Any]:
    """Return what a ``Runner`` checkpoint needs besides tensors, by the name in the file."""
    reconstruct = np.ndarray.__reduce__(np.zeros(0))[0]
    scalar = np.float64(0).__reduce__()[0]
    # Object arrays and structured ones hold more than numbers and text.
    dtypes = {type(np.dtype(code)) for code in np.typecodes['All'] if code not in 'OV'}
    return {
        **{_name_of(cls): cls for cls in (HistoryBuffer, ConfigDict, np.ndarray, np.dtype)},
        **{_name_of(dtype): dtype for dtype in dtypes},
        **{
            f'numpy.{core}.multiarray.{function.__name__}': function
            for function in (reconstruct, scalar)
            for core in ('core', '_core')  # numpy 2 moved it; files of either must load
        },
        _GETATTR: history_buffer_method,
    }


def history_buffer_method(owner: Any, name: str) -> Any:
    """Return a statistic of ``HistoryBuffer``, for a pickle that calls ``builtins.getattr``.

    ``getattr`` itself would give a file any attribute of any safe class. Where a user has declared
    a ``getattr`` safe, that one is called, because torch keeps only one global of each name.

    Raises:
        ValueError: The file needs another attribute, and no ``getattr`` was declared safe.
    """
    if owner is HistoryBuffer and name in _STATISTICS:
        return getattr(HistoryBuffer, name)
    for declared, value in _declared_globals():
        if declared == _GETATTR and value is not history_buffer_method:
            return value(owner, name)
    raise ValueError(f'a checkpoint may not ask for the attribute {name!r} of {owner!r}')


def allowed_globals() -> dict[str, Any]:
    """Return the globals that a checkpoint may name: those allowed by torch, user and package."""
    plain = (OrderedDict, Counter, set, bytearray, complex, codecs.encode)
    return {
        **{_name_of(value): value for value in plain},
        **torch._weights_only_unpickler._get_allowed_globals(),
        **safe_globals(),
        **dict(_declared_globals()),
    }


def refused_globals(path: str | Path) -> list[str]:
    """Return the names in a checkpoint that :func:`load_checkpoint` refuses, without loading it.

    The list is empty for a file that is no checkpoint.

    Args:
        path: A checkpoint.
    """
    allowed = allowed_globals()
    names = dict.fromkeys(name for name in _globals_in(Path(path)) if name not in allowed)
    return list(names)


def current_name(module: str, name: str) -> str:
    """Return the full name of a global in Python 3. torch writes the names of Python 2."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f'{module}.{name}'


def torch_takes_named_globals() -> bool:
    """Return whether globals can be declared safe under the name that a file gives them."""
    return digit_version(torch.__version__) >= digit_version('2.6.0')


def _declared_globals() -> Iterator[tuple[str, Any]]:
    """Yield name and value of each global that was declared safe to torch."""
    get = getattr(torch.serialization, 'get_safe_globals', list)  # torch 2.4 added it
    for entry in get():
        value, name = entry if isinstance(entry, tuple) else (entry, _name_of(entry))
        yield name, value


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


def _name_of(value: Callable) -> str:
    return f'{value.__module__}.{value.__qualname__}'
