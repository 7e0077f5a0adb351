"""Average over samples, as the losses do."""

from __future__ import annotations

from torch import Tensor


def mean_over_samples(values: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum over samples, divided by the number with a weight above zero.

    Args:
        values: Float, shape (N,).
        weights: Float, shape (N,), >= 0.

    Returns:
        A float32 scalar; zero, with a graph, where there is no sample.

    Example:
        >>> import torch
        >>> mean_over_samples(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 0.5, 0.0]))
        tensor(1.)
    """
    return (weights.float() * values.float()).sum() / count_samples(weights)


def count_samples(weights: Tensor) -> Tensor:
    """Return the number of samples with a weight above zero, at least 1, as an int64 scalar."""
    return (weights > 0).sum().clamp(min=1)
