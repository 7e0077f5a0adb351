"""The levels of feature maps, as the losses compare them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Callable, Optional

import torch
from torch import Tensor

from calkd_det.losses.chunks import chunks
from calkd_det.losses.slopes import with_slopes

# From maps of some channels of a level, each float32 of shape (N, d, h, w), and the places that
# count or None, to the sum over the channels and its slopes by the first maps. Maps are not changed
# in place.
CompareChannels = Callable[[Tensor, Tensor, Optional[Tensor]], 'tuple[Tensor, Tensor]']


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


def compare_by_channels(
    compare: CompareChannels,
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    valid: Sequence[Tensor] | None,
) -> Tensor:
    """Sum the means over channels of all levels, a few channels at a time, in float32.

    Value and slopes are computed together. One float32 tensor of the size of the maps is kept for
    the backward pass.

    Args:
        compare: Compares some channels of a level.
        student: Feature maps by level, float, each of shape (N, D, h, w).
        teacher: As many, of the same shapes. Gradients do not flow into them.
        valid: For each level which places count, bool, shape (N, 1, h, w); None where all do.

    Returns:
        A float32 scalar. It can be differentiated once.
    """
    masks = [None] * len(teacher) if valid is None else valid
    return torch.stack(
        [_compare_level(compare, *maps) for maps in zip(student, teacher, masks)]
    ).sum()


def _compare_level(
    compare: CompareChannels, student: Tensor, teacher: Tensor, mask: Tensor | None
) -> Tensor:
    with torch.no_grad():
        slopes = torch.empty_like(student, dtype=torch.float32)
        values = []
        for channels in chunks(teacher, dim=1):
            value, slopes[:, channels] = compare(
                student[:, channels].float(), teacher[:, channels].float(), mask
            )
            values.append(value)
        share = slopes.new_tensor(1 / teacher.shape[1])
        value = share * torch.stack(values).sum()
    return with_slopes(value, student, slopes, share)
