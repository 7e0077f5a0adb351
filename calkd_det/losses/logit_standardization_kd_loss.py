"""Knowledge distillation on standardized class logits."""

from __future__ import annotations

import math

from mmdet.registry import MODELS
from torch import Tensor

from calkd_det.losses.base import AvgFactor, ClassLoss
from calkd_det.losses.kd_loss import kd_loss


def logit_standardization_kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    weights: Tensor,
    *,
    tau: float = 2.0,
    eps: float = 1e-7,
) -> Tensor:
    r"""Compute :func:`~calkd_det.losses.kd_loss` between z-scored logits.

    .. math::
        \mathrm{KD}_\tau\left(\frac{z^s_n - \mu(z^s_n)}{\sigma(z^s_n) + \epsilon}, \;
        \frac{z^t_n - \mu(z^t_n)}{\sigma(z^t_n) + \epsilon}\right)

    Mean and standard deviation (of the population, 1/K) are over the K logits of a sample, the
    background's included, in float32 also under autocast. The student learns the shape of the
    teacher's logits, not their size. (Sun et al., `Logit Standardization in Knowledge
    Distillation <https://arxiv.org/abs/2403.01427>`_, CVPR 2024, algorithm 1. The authors'
    released code divides by the sample's standard deviation, 1/(K - 1), which is the same as
    multiplying tau by sqrt(K / (K - 1)).)

    .. warning::
        **A calibration temperature T has no effect on this loss.** Dividing logits by one T
        divides their mean and their standard deviation by T as well, so that it cancels: z / T
        with eps is z with T * eps. ``TemperatureScaling``, with any T, trains the same student as
        no calibrator. A temperature for each class (``ClassTemperatureScaling``,
        ``ForegroundBackgroundScaling``) changes the shape of the logits and does not cancel. T
        does not cancel either where classes that only the teacher knows join its background,
        which happens between calibration and loss. The student does not take over the teacher's
        confidence: the loss is zero for every student whose logits are a * z_t + b with a > 0.

    The largest z-score of K logits is sqrt(K - 1). So the compared scores stay below 1 for any
    teacher: below 0.54 with K = 81 and tau = 2.

    Args:
        student_logits: Float, shape (N, K).
        teacher_logits: Float, shape (N, K). Gradients do not flow into it.
        weights: Float, shape (N,), >= 0.
        tau: The distillation temperature, > 0, that softens both sides.
        eps: Added to the standard deviation, > 0, in units of logits. The gradient grows as
            1 / (sigma + eps) where the student's logits are nearly all the same.

    Returns:
        A float32 scalar; zero, with a graph, where there is no sample.

    Example:
        >>> import torch
        >>> z_s, z_t = torch.tensor([[[2.0, 0.0, -1.0]], [[4.0, 2.0, -9.0]]])
        >>> a, b = (logit_standardization_kd_loss(z_s, z_t / T, torch.ones(1)) for T in (1, 1.5))
        >>> torch.allclose(a, b)
        True
    """
    return kd_loss(
        _standardize(student_logits, eps), _standardize(teacher_logits, eps), weights, tau=tau
    )


def _standardize(logits: Tensor, eps: float) -> Tensor:
    logits = logits.float()
    centred = logits - logits.mean(dim=1, keepdim=True)
    # Where all logits are equal, the gradient of a norm is zero, that of the root of a mean is NaN.
    deviation = centred.norm(dim=1, keepdim=True) / math.sqrt(logits.shape[1])
    return centred / (deviation + eps)


@MODELS.register_module()
class LogitStandardizationKDLoss(ClassLoss):
    """:func:`logit_standardization_kd_loss` as a registered module.

    **The teacher's calibration temperature T has no effect on this loss**: it cancels in the
    z-score, see the function. To distil from a calibrated teacher take another loss, or a
    calibrator with a temperature for each class.

    The default tau is the base temperature that the authors' released code gives for CIFAR-100
    classification, there with a weight of 9 beside a cross-entropy of weight 0.1. Nothing here
    was tuned for detection.

    Args:
        tau: The distillation temperature, > 0. It softens the z-scores of teacher and student
            alike and is not the teacher's calibration temperature T.
        loss_weight: Factor of the loss, >= 0. Zero switches it off.
        eps: Added to the standard deviations, > 0.

    Raises:
        ConfigError: An argument is not a finite number in its range.
    """

    activation = 'softmax'

    def __init__(self, tau: float = 2.0, loss_weight: float = 1.0, eps: float = 1e-7) -> None:
        super().__init__(loss_weight, positive=dict(tau=tau, eps=eps))

    def compute(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor,
        weights: Tensor,
        avg_factor: AvgFactor,
    ) -> Tensor:
        return logit_standardization_kd_loss(
            student_logits, teacher_logits, weights, tau=self.tau, eps=self.eps
        )
