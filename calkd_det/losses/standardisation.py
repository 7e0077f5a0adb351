"""Standardise feature maps, as the losses do."""

from __future__ import annotations

from torch import Tensor

EPS = 1e-6


def standardise(maps: Tensor, valid: Tensor | None = None) -> Tensor:
    r"""Return :math:`(x - \mu) / (\sigma + \epsilon)` of each channel over the places of a batch.

    :math:`\sigma` is the unbiased standard deviation and :math:`\epsilon = 10^{-6}`. A channel that
    is constant becomes zero and gets no gradient.

    Args:
        maps: Float, shape (B, D, h, w).
        valid: Which places count, bool, shape (B, 1, h, w); None where all do. The others become
            zero.

    Example:
        >>> import torch
        >>> standardise(torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 1, 3)).flatten()
        tensor([-1.0000,  0.0000,  1.0000])
    """
    dims = (0, 2, 3)
    if valid is None:
        centred = maps - maps.mean(dim=dims, keepdim=True)
        degrees: Tensor | int = max(maps[:, 0].numel() - 1, 1)
    else:
        count = valid.sum()
        mean = (maps * valid).sum(dim=dims, keepdim=True) / count.clamp(min=1)
        centred = (maps - mean) * valid
        degrees = (count - 1).clamp(min=1)
    variance = centred.square().sum(dim=dims, keepdim=True) / degrees
    varies = variance > 0
    return centred * (varies / (variance.where(varies, 1.0).sqrt() + EPS))
