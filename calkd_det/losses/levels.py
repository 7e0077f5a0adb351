"""The levels of feature maps, as the losses compare them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from calkd_det.losses.chunks import chunks
from calkd_det.losses.slopes import with_slopes

# Takes maps of some channels of a level, each float32 of shape (N, d, h, w), the places that count
# or None, and a tensor of that shape for the slopes by the first maps. Returns the sum over the
# channels. Maps are not changed in place.
CompareChannels = Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]


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
    slope_factor: float = 1.0,
) -> Tensor:
    """Sum the means over channels of all levels, a few channels at a time, in float32.

    Value and slopes are computed together. One float32 tensor of the size of the maps is kept for
    the backward pass.

    Args:
        compare: Compares some channels of a level.
        student: Feature maps by level, float, each of shape (N, D, h, w).
        teacher: As many, of the same shapes. Gradients do not flow into them.
        valid: For each level which places count, bool, shape (N, 1, h, w); None where all do.
        slope_factor: What the slopes that ``compare`` gives still lack.

    Returns:
        A float32 scalar. It can be differentiated once.
    """
    masks = [None] * len(teacher) if valid is None else valid
    levels = zip(student, teacher, masks)
    return torch.stack([_compare_level(compare, *maps, slope_factor) for maps in levels]).sum()


def _compare_level(
    compare: CompareChannels,
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    slope_factor: float,
) -> Tensor:
    with torch.no_grad():
        slopes = torch.empty_like(student, dtype=torch.float32)
        values = [
            compare(
                *(student[:, channels].float(), teacher[:, channels].float()),
                *(mask, slopes[:, channels]),
            )
            for channels in chunks(teacher, dim=1)
        ]
        share = 1 / teacher.shape[1]
        value = share * torch.stack(values).sum()
        # Not new_tensor, for which a GPU waits.
        factors = torch.full_like(value, share * slope_factor)
    return with_slopes(value, student, slopes, factors)
