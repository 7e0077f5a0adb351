"""Share one network between all holders of the same teacher in a process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

_DETECTORS: WeakValueDictionary[tuple[str, str | None], nn.Module] = WeakValueDictionary()


def share_detector(detector: nn.Module, key: str) -> nn.Module:
    """Return the detector that another holder prepared from the same weights, or the given one.

    Semi-supervised detectors such as SoftTeacher build two students from one config, each with the
    same teacher.

    Args:
        detector: A frozen detector, prepared for its task.
        key: Digest of the config and the weights that it was made from.

    Returns:
        A detector whose tensors equal those of ``detector``, bit for bit. A shared detector that
        was changed after it was prepared is not returned.
    """
    content = content_of(detector)
    shared = _DETECTORS.get((key, content))
    if shared is not None and content == content_of(shared):
        return shared
    _DETECTORS[key, content] = detector
    return detector


def content_of(detector: nn.Module) -> str | None:
    """Return a digest of all tensors, or None where one of them is on the meta device."""
    tensors = detector.state_dict().values()
    return None if any(x.is_meta for x in tensors) else digest(map(tensor_bytes, tensors))


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return the content of a tensor of any dtype and device."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def digest(parts: Iterable[bytes]) -> str:
    """Return the SHA-256 of all parts in their order, in hexadecimal."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()
