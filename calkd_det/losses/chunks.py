"""Slices of a tensor that are worked on at a time, to keep temporaries small."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

# Number of values of a chunk: so few that its temporaries fit the cache of a CPU; on other devices
# so many that starting kernels is no part of the time.
CHUNK_ON_CPU = 2**17
CHUNK_ELSEWHERE = 2**25


def chunks(values: Tensor, dim: int) -> Iterator[slice]:
    """Yield slices along a dimension, each with about as many values as a chunk.

    Args:
        values: Any shape.
        dim: The dimension, >= 0.
    """
    size = CHUNK_ON_CPU if values.device.type == 'cpu' else CHUNK_ELSEWHERE
    length = values.shape[dim]
    step = max(size * length // max(values.numel(), 1), 1)
    for start in range(0, length, step):
        yield slice(start, start + step)
