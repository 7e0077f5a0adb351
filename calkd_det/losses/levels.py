"""The levels of feature maps, as the losses compare them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor


def iterate_levels(
    student: Sequence[Tensor], teacher: Sequence[Tensor], valid: Sequence[Tensor] | None
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Yield the maps of each level in float32, the teacher's without a graph, and what counts.

    Args:
        student: Feature maps by level, float, each of shape (N, D, h, w).
        teacher: As many, each of shape (N, D', h, w).
        valid: For each level which places count, bool, shape (N, 1, h, w); None where all do.

    Returns:
        The student's maps, the teacher's, and which places count or None, for each level.
    """
    masks = [None] * len(teacher) if valid is None else valid
    for own, other, mask in zip(student, teacher, masks):
        yield own.float(), other.detach().float(), mask
