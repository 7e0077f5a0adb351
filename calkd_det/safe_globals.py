"""The classes and functions that a checkpoint may name, by the name in the file."""

from __future__ import annotations

import codecs
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer

_GETATTR = 'builtins.getattr'
_STATISTICS = ('min', 'max', 'current', 'mean')


def safe_globals() -> dict[str, Any]:
    """Return what a ``Runner`` checkpoint needs besides tensors, by the name in the file."""
    reconstruct = np.ndarray.__reduce__(np.zeros(0))[0]
    scalar = np.float64(0).__reduce__()[0]
    # Object arrays and structured ones hold more than numbers and text.
    dtypes = {type(np.dtype(code)) for code in np.typecodes['All'] if code not in 'OV'}
    return {
        **{full_name(cls): cls for cls in (HistoryBuffer, ConfigDict, np.ndarray, np.dtype)},
        **{full_name(dtype): dtype for dtype in dtypes},
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
        **{full_name(value): value for value in plain},
        **torch._weights_only_unpickler._get_allowed_globals(),
        **safe_globals(),
        **dict(_declared_globals()),
    }


def current_name(module: str, name: str) -> str:
    """Return the full name of a global in Python 3. torch writes the names of Python 2."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f'{module}.{name}'


def full_name(value: Callable) -> str:
    """Return the name by which pickle refers to a class or function."""
    return f'{value.__module__}.{value.__qualname__}'


def _declared_globals() -> Iterator[tuple[str, Any]]:
    """Yield name and value of each global that was declared safe to torch."""
    get = getattr(torch.serialization, 'get_safe_globals', list)  # torch 2.4 added it
    for entry in get():
        value, name = entry if isinstance(entry, tuple) else (entry, full_name(entry))
        yield name, value
