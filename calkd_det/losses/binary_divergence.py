"""Divergence of sigmoid scores over the maps of a dense head, in little memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from calkd_det.losses.chunks import chunks
from calkd_det.losses.kernels import can_fuse
from calkd_det.losses.slopes import with_slopes

# Factor on slopes that are stored in float16. No slope exceeds 1.06, so that none overflows. Only
# slopes far below float16's smallest number become zero.
FLOAT16_SCALE = 2.0**15


def binary_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    weights: Tensor,
    *,
    tau: float = 1.0,
    scale_by_difference: bool = False,
) -> Tensor:
    r"""Sum the Kullback-Leibler divergences of the student's sigmoid scores from the teacher's.

    .. math::
        \sum_n w_n \sum_c v_{nc} \, \mathrm{KL}(p^t_{nc} \| p^s_{nc}), \quad
        \mathrm{KL}(p \| q) = p \log \frac{p}{q} + (1 - p) \log \frac{1 - p}{1 - q}, \quad
        p = \sigma(z / \tau)

    with :math:`v = 1`, or :math:`v = |p^s - p^t|` where ``scale_by_difference`` is set. The
    slopes by the student's logits are, with :math:`d = p^s - p^t`,

    .. math::
        \frac{w}{\tau} d \qquad \text{or} \qquad
        \frac{w}{\tau} \left(|d| \, d + \mathrm{sign}(d) \, p^s (1 - p^s) \, \mathrm{KL}\right).

    Value and slopes are computed together, a chunk of samples at a time. One tensor of the size
    and dtype of the logits is kept for the backward pass, where a second one is made. The
    same formula left to autograd keeps up to six of these tensors and needs eight at its peak.

    Args:
        student_logits: Float, shape (N, C).
        teacher_logits: Float, shape (N, C). Gradients do not flow into it.
        weights: Float, shape (N,). Gradients do not flow into it.
        tau: The distillation temperature, > 0, that softens both sides.
        scale_by_difference: Whether v is the difference of the scores, through which the
            gradient flows.

    Returns:
        A scalar, float32, or float64 where the student's logits are float64. It can be
        differentiated once.

    Raises:
        RuntimeError: In the backward pass, where ``create_graph=True``.
    """
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    with torch.no_grad():
        weights = weights.to(dtype)
        slopes = torch.empty_like(student_logits)
        compare = _fused if can_fuse(student_logits, teacher_logits) else _by_chunks
        divergences = compare(student_logits, teacher_logits, slopes, tau, scale_by_difference)
        value = (weights * divergences).sum()
        factors = (weights / (tau * _scale(slopes)))[:, None]
    return with_slopes(value, student_logits, slopes, factors)


def _fused(
    student_logits: Tensor, teacher_logits: Tensor, slopes: Tensor, tau: float, by_difference: bool
) -> Tensor:
    from calkd_det.losses.kernels.scores import sigmoid_divergence

    return sigmoid_divergence(
        *(student_logits, teacher_logits, slopes),
        tau=tau,
        slope_scale=_scale(slopes),
        scale_by_difference=by_difference,
    )


def _by_chunks(
    student_logits: Tensor, teacher_logits: Tensor, slopes: Tensor, tau: float, by_difference: bool
) -> Tensor:
    """Return each sample's divergence, (n,), and fill in the slopes by ``student_logits / tau``."""
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    divergences = student_logits.new_empty(len(student_logits), dtype=dtype)
    for rows in chunks(student_logits, dim=0):
        divergences[rows], slope = _divergence_and_slope(
            student_logits[rows].to(dtype) / tau,
            teacher_logits[rows].to(dtype) / tau,
            by_difference,
        )
        slopes[rows] = slope.mul_(_scale(slopes))
    return divergences


def _divergence_and_slope(
    student: Tensor, teacher: Tensor, scale_by_difference: bool
) -> tuple[Tensor, Tensor]:
    """Return each sample's divergence, (n,), and its slopes by the student's logits, (n, C)."""
    # The divergence is that of the scores of "no", too. Of the two, the one whose teacher's logit
    # is below zero loses no digits where both scores are near 0 or near 1.
    sign = torch.where(teacher > 0, -1.0, 1.0)
    student, teacher = student * sign, teacher * sign
    student_score, teacher_score = student.sigmoid(), teacher.sigmoid()
    # In this form it is exactly zero where the logits are the same.
    divergence = F.softplus(student).sub_(F.softplus(teacher))
    divergence.addcmul_(teacher_score, student - teacher, value=-1)
    difference = student_score - teacher_score
    if not scale_by_difference:
        return divergence.sum(dim=1), difference.mul_(sign)
    slope = student_score.addcmul_(student_score, student_score, value=-1).mul_(divergence)
    slope = slope.addcmul_(difference, difference).copysign_(difference).mul_(sign)
    return divergence.mul_(difference.abs_()).sum(dim=1), slope


def _scale(slopes: Tensor) -> float:
    return FLOAT16_SCALE if slopes.dtype == torch.float16 else 1.0
