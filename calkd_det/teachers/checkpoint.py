"""Strict loading of a teacher's weights.

mmengine's ``load_checkpoint`` lets keys be missing with a warning, so a wrong file gives a
random teacher in silence. Here every weight must be filled and every stored one used.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from calkd_det.errors import TeacherError
from calkd_det.teachers.source import CHECKPOINT_KEY, CONFIG_KEY

_SHOWN_KEYS = 4


def load_weights(detector: nn.Module, checkpoint: str) -> tuple[str, ...] | None:
    """Fills a detector with the weights of a checkpoint, every one of them.

    Args:
        detector: A detector as mmdet built it, on the CPU. It is changed in place.
        checkpoint: A path or URL. A training checkpoint, a published one, or a state dict alone.

    Returns:
        The class names stored in the checkpoint, or None.

    Raises:
        TeacherError: The file is missing, truncated, not a checkpoint, holds more than tensors
            and plain data, lacks a weight of the detector, has one of another shape, or has
            weights that the detector lacks.
    """
    content = _read(checkpoint)
    state_dict = _state_dict(content, checkpoint)
    try:
        missing, unexpected = detector.load_state_dict(state_dict, strict=False)
    except RuntimeError as error:
        mismatch = _shape_mismatch(detector.state_dict(), state_dict)
        raise TeacherError(
            f"{CHECKPOINT_KEY}: '{checkpoint}' does not fit {CONFIG_KEY}; of another shape: "
            f'{_few(mismatch) if mismatch else error}'
        ) from error
    missing = [key for key in missing if not key.endswith('num_batches_tracked')]
    if missing or unexpected:
        parts = [
            f'{len(keys)} weights {what}: {_few(keys)}'
            for keys, what in (
                (missing, 'of the teacher are not in the file'),
                (unexpected, 'of the file have no place in the teacher'),
            )
            if keys
        ]
        raise TeacherError(
            f"{CHECKPOINT_KEY}: '{checkpoint}' does not fit {CONFIG_KEY}; {'; '.join(parts)}. "
            'Give the config that this checkpoint was trained with'
        )
    return _stored_classes(content)


def _read(checkpoint: str) -> Any:
    try:
        return CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu', logger='silent')
    except FileNotFoundError as error:
        raise TeacherError(f"{CHECKPOINT_KEY}: there is no file '{checkpoint}'") from error
    # Truncated files raise RuntimeError, EOFError or UnpicklingError, URLs URLError, OSError,
    # ... by the torch version and the place where the file breaks.
    except Exception as error:
        reason = str(error).strip().split('\n')[0]
        raise TeacherError(
            f"{CHECKPOINT_KEY}: cannot read '{checkpoint}': truncated, not a PyTorch checkpoint, "
            f'unreachable, or holding more than weights and plain data '
            f'({type(error).__name__}: {reason})'
        ) from error


def _state_dict(content: Any, checkpoint: str) -> OrderedDict[str, Tensor]:
    state_dict = content.get('state_dict', content) if isinstance(content, Mapping) else None
    is_weights = isinstance(state_dict, Mapping) and any(
        isinstance(value, Tensor) for value in state_dict.values()
    )
    if not is_weights:
        raise TeacherError(
            f"{CHECKPOINT_KEY}: '{checkpoint}' holds no weights: neither a 'state_dict' nor "
            'tensors by name'
        )
    # DistributedDataParallel's prefix, left by scripts that saved the wrapper.
    plain = OrderedDict((key.removeprefix('module.'), value) for key, value in state_dict.items())
    if hasattr(state_dict, '_metadata'):
        plain._metadata = state_dict._metadata
    return plain


def _stored_classes(content: Mapping) -> tuple[str, ...] | None:
    meta = content.get('meta')
    if not isinstance(meta, Mapping):
        return None
    dataset_meta = meta.get('dataset_meta')
    dataset_meta = dataset_meta if isinstance(dataset_meta, Mapping) else {}
    lower = {str(key).lower(): value for key, value in {**meta, **dataset_meta}.items()}
    classes = lower.get('classes')
    return tuple(classes) if isinstance(classes, (list, tuple)) else None


def _shape_mismatch(wanted: Mapping[str, Tensor], stored: Mapping[str, torch.Tensor]) -> list[str]:
    return [
        f'{key} {tuple(stored[key].shape)} instead of {tuple(value.shape)}'
        for key, value in wanted.items()
        if isinstance(stored.get(key), Tensor) and stored[key].shape != value.shape
    ]


def _few(keys: list[str]) -> str:
    more = len(keys) - _SHOWN_KEYS
    return ', '.join(keys[:_SHOWN_KEYS]) + (f' and {more} more' if more > 0 else '')
