"""Standardise feature maps, as the losses do."""

from __future__ import annotations

from torch import Tensor, linalg

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
    centred, deviation, _ = centre(maps, valid)
    return centred * inverse(deviation)


def centre(maps: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, float | Tensor]:
    """Subtract the mean of each channel, and return what :func:`standardise` divides by.

    Args:
        maps: Float, shape (B, D, h, w).
        valid: See :func:`standardise`.

    Returns:
        The centred maps, zero where ``valid`` is false, as a tensor of their own; the unbiased
        standard deviation, shape (1, D, 1, 1); and the degrees of freedom, a scalar.
    """
    dims = (0, 2, 3)
    if valid is None:
        centred = maps - maps.mean(dim=dims, keepdim=True)
        degrees = float(max(maps[:, 0].numel() - 1, 1))
    else:
        count = valid.sum()
        centred = maps * valid
        mean = centred.sum(dim=dims, keepdim=True) / count.clamp(min=1)
        centred = centred.addcmul_(valid.to(maps.dtype), mean, value=-1)
        degrees = (count - 1).clamp(min=1).to(maps.dtype)
    # One pass over the maps, where square().sum() takes three.
    norm = linalg.vector_norm(centred, dim=dims, keepdim=True)
    return centred, norm / degrees**0.5, degrees


def inverse(deviation: Tensor) -> Tensor:
    r"""Return :math:`1 / (\sigma + \epsilon)`, or zero where a channel is constant."""
    return (deviation > 0) / (deviation + EPS)
