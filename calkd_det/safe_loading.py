"""Lets ``torch.load`` read mmengine's own training checkpoints without leaving safe loading.

Since torch 2.6 ``torch.load`` unpickles weights only. A checkpoint written by mmengine's
``Runner`` also carries its log buffers, and is refused: ``--resume`` and ``tools/test.py`` stop.
The few globals that such a file needs are declared safe here, and nothing else.
"""

from __future__ import annotations

from typing import Any, Callable

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version

_STATISTICS = ('min', 'max', 'current', 'mean')


def _history_buffer_method(owner: Any, name: str) -> Callable:
    """Stands in for ``builtins.getattr``, by which pickle names ``HistoryBuffer.mean``.

    ``getattr`` itself would let a file reach any attribute of any safe class.
    """
    if owner is HistoryBuffer and name in _STATISTICS:
        return getattr(HistoryBuffer, name)
    raise ValueError(f'a checkpoint may not ask for the attribute {name!r} of {owner!r}')


def _numpy_globals() -> list[Callable | tuple[Callable, str]]:
    reconstruct = np.ndarray.__reduce__(np.zeros(0))[0]
    scalar = np.float64(0).__reduce__()[0]
    dtypes = {type(np.dtype(code)) for code in ('f2', 'f4', 'f8', 'i4', 'i8', 'u1', '?')}
    both_names = [
        (function, f'numpy.{core}.multiarray.{function.__name__}')
        for function in (reconstruct, scalar)
        for core in ('core', '_core')  # numpy 2 moved it; files of either must load
    ]
    return [np.ndarray, np.dtype, *dtypes, *both_names]


def register_safe_globals() -> None:
    """Declares what a ``Runner`` checkpoint holds safe for ``torch.load(weights_only=True)``."""
    if digit_version(torch.__version__) < digit_version('2.6.0'):
        return  # safe loading is not the default there
    torch.serialization.add_safe_globals(
        [HistoryBuffer, (_history_buffer_method, 'builtins.getattr'), *_numpy_globals()]
    )
