"""A Triton kernel of the divergence of sigmoid scores."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

VALUES = 4096
WARPS = 8


def sigmoid_divergence(
    student: Tensor,
    teacher: Tensor,
    slopes: Tensor,
    *,
    tau: float,
    slope_scale: float,
    scale_by_difference: bool,
) -> Tensor:
    """Return the divergences of sigmoid scores, summed over the classes of each sample.

    Args:
        student: Logits, float, shape (N, C).
        teacher: Float, of the same shape.
        slopes: Float, of the same shape. It is filled in with the slopes by ``student / tau``,
            times ``slope_scale``.
        tau: What both are divided by.
        slope_scale: See ``slopes``.
        scale_by_difference: See :func:`~calkd_det.losses.binary_divergence.binary_divergence`.

    Returns:
        Float32, shape (N,).
    """
    samples, classes = student.shape
    divergences = student.new_empty(samples, dtype=torch.float32)
    columns = triton.next_power_of_2(classes)
    rows = max(VALUES // columns, 1)
    if samples:
        # Triton starts kernels on the current device, wherever the tensors are.
        with torch.cuda.device_of(student):
            _sigmoid_divergence[(triton.cdiv(samples, rows),)](
                *(student, student.stride(0), teacher, teacher.stride(0)),
                *(slopes, slopes.stride(0), divergences),
                *(tau, slope_scale, samples, classes),
                BY_DIFFERENCE=scale_by_difference,
                ROWS=rows,
                COLUMNS=columns,
                num_warps=WARPS,
            )
    return divergences


@triton.jit
def _softplus_of_negative(x):
    """Return log(1 + exp(x)) for x <= 0 without the loss of digits of 1 + exp(x) (Kahan)."""
    small = tl.exp(x)
    rounded = 1.0 + small
    rest = rounded - 1.0
    exact = tl.log(rounded) * (small / tl.where(rest == 0.0, 1.0, rest))
    return tl.where(rest == 0.0, small, exact)


@triton.jit
def _sigmoid_divergence(
    student,
    student_stride,
    teacher,
    teacher_stride,
    slopes,
    slopes_stride,
    divergences,
    tau,
    slope_scale,
    samples,
    classes,
    BY_DIFFERENCE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    keep = (row < samples)[:, None] & (column < classes)[None, :]
    student += row[:, None] * student_stride + column[None, :]
    teacher += row[:, None] * teacher_stride + column[None, :]
    slopes += row[:, None] * slopes_stride + column[None, :]
    own = tl.load(student, mask=keep, other=0.0).to(tl.float32) / tau
    other = tl.load(teacher, mask=keep, other=0.0).to(tl.float32) / tau

    # As in binary_divergence.py: the scores of "no" where the teacher's logit is above zero.
    sign = tl.where(other > 0, -1.0, 1.0)
    own = own * sign
    other = other * sign
    own_rest = tl.exp(-tl.abs(own))
    own_score = tl.where(own > 0, 1.0, own_rest) / (1.0 + own_rest)
    other_rest = tl.exp(other)
    other_score = other_rest / (1.0 + other_rest)
    # Not own_score - other_score, of which a GPU rounds one quotient only.
    difference = tl.where(own > 0, 1.0 - own_rest * other_rest, own_rest - other_rest)
    difference = difference / ((1.0 + own_rest) * (1.0 + other_rest))
    divergence = tl.maximum(own, 0.0) + _softplus_of_negative(-tl.abs(own))
    divergence = divergence - _softplus_of_negative(other) - other_score * (own - other)
    if BY_DIFFERENCE:
        slope = difference * difference + own_score * (1.0 - own_score) * divergence
        slope = tl.where(difference < 0, -slope, slope)
        divergence = divergence * tl.abs(difference)
    else:
        slope = difference
    slope = slope * sign * slope_scale
    tl.store(slopes, slope.to(slopes.dtype.element_ty), mask=keep)
    tl.store(divergences + row, tl.sum(tl.where(keep, divergence, 0.0), axis=1), mask=row < samples)
