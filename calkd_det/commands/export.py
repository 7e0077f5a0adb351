"""Strip a training checkpoint to what inference needs, readable where CalKD-Det is not installed.

Since torch 2.6, mmdet refuses every training checkpoint of mmengine (its log buffers are no plain
data) unless their classes are declared safe, which importing calkd_det does. What this writes
holds tensors and plain data only, so that any mmdet reads it, with the plain config.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calkd_det.errors import ConfigError
from calkd_det.safe_loading import load_checkpoint, refused_globals

KEPT = ('meta', 'state_dict')


def export_student(source: Path, target: Path) -> None:
    """Write weights and meta data of a checkpoint to a file of their own.

    Args:
        source: A checkpoint written by mmengine's ``Runner``.
        target: The file to write. It must not exist.

    Raises:
        ConfigError: ``source`` is missing, no training checkpoint, or holds objects that are
            neither tensors nor data; or ``target`` exists.
    """
    if target.exists():
        raise ConfigError(f"'{target}' exists already: name another file, or remove it first")
    try:
        checkpoint: Any = load_checkpoint(source)
    except FileNotFoundError:
        raise ConfigError(f"there is no file '{source}'") from None
    # Torch's errors for a broken file differ by version and by where it breaks.
    except Exception as error:
        refused = refused_globals(source)
        reason = (
            f'it holds objects that are no plain data: {", ".join(refused)}'
            if refused
            else f'{type(error).__name__}: {str(error).strip()}'.split('\n')[0]
        )
        raise ConfigError(f"cannot read '{source}' ({reason})") from error
    if not (isinstance(checkpoint, Mapping) and 'state_dict' in checkpoint):
        raise ConfigError(f"'{source}' is no training checkpoint: it has no 'state_dict'")
    exported = {key: plain_data(checkpoint[key], key) for key in KEPT if key in checkpoint}
    target.parent.mkdir(parents=True, exist_ok=True)
    torch.save(exported, target)


def plain_data(value: Any, key: str) -> Any:
    """Return a value as tensors and plain Python data, which ``torch.load`` of any version reads.

    Args:
        value: Arrays become lists, numpy's scalars numbers, mappings dicts.
        key: Where the value stands in the checkpoint, for the error.

    Raises:
        ConfigError: The value, or a part of it, is anything else.
    """
    if isinstance(value, torch.Tensor) or value is None:
        return value
    if type(value) in (bool, int, float, complex, str, bytes):
        return value
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind not in 'OVmM':
        return value.tolist()
    if isinstance(value, Mapping):
        items = {k: plain_data(v, f'{key}.{k}') for k, v in dict.items(value)}
        if not isinstance(value, OrderedDict):
            return items
        ordered = OrderedDict(items)
        if hasattr(value, '_metadata'):  # the versions of a state dict's modules
            ordered._metadata = plain_data(value._metadata, f'{key}._metadata')
        return ordered
    for kind in (list, tuple, set):
        if isinstance(value, kind):
            return kind(plain_data(part, f'{key}[{i}]') for i, part in enumerate(value))
    raise ConfigError(f'{key} is a {type(value).__name__}, which is no plain data')
