"""Hinton's knowledge distillation on class logits."""

from __future__ import annotations

import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor

from calkd_det.losses.averaging import mean_over_samples
from calkd_det.losses.base import AvgFactor, ClassLoss


def kd_loss(
    student_logits: Tensor, teacher_logits: Tensor, weights: Tensor, *, tau: float = 1.0
) -> Tensor:
    r"""Compute the Kullback-Leibler divergence of the student's scores from the teacher's.

    .. math::
        \frac{\tau^2}{|\{n : w_n > 0\}|} \sum_n w_n \,
        \mathrm{KL}\left(\mathrm{softmax}(z^t_n / \tau) \,\|\, \mathrm{softmax}(z^s_n / \tau)\right)

    It is summed over classes, the background included, and averaged over samples, in float32 also
    under autocast. The factor :math:`\tau^2` keeps the gradient's size as tau changes
    (Hinton et al., `Distilling the Knowledge in a Neural Network
    <https://arxiv.org/abs/1503.02531>`_, section 2).

    Args:
        student_logits: Float, shape (N, K).
        teacher_logits: Float, shape (N, K), already calibrated, i.e. divided by the teacher's
            own temperature T. Gradients do not flow into it.
        weights: Float, shape (N,), >= 0.
        tau: The distillation temperature, > 0, that softens both sides.

    Returns:
        A float32 scalar; zero, with a graph, where there is no sample.

    Example:
        >>> import torch
        >>> z = torch.tensor([[2.0, 0.0, -1.0]])
        >>> kd_loss(z, z / 1.5, torch.ones(1)) > 0
        tensor(True)
        >>> kd_loss(z, z, torch.ones(1))
        tensor(0.)
    """
    log_student = F.log_softmax(student_logits.float() / tau, dim=1)
    log_teacher = F.log_softmax(teacher_logits.detach().float() / tau, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction='none', log_target=True).sum(dim=1)
    return tau**2 * mean_over_samples(divergence, weights)


@MODELS.register_module()
class KDLoss(ClassLoss):
    """:func:`kd_loss` as a registered module.

    Args:
        tau: The distillation temperature, > 0. It softens teacher and student alike and is not
            the teacher's calibration temperature T.
        loss_weight: Factor of the loss, >= 0. Zero switches it off.

    Raises:
        ConfigError: An argument is not a finite number in its range.
    """

    activation = 'softmax'

    def __init__(self, tau: float = 1.0, loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight, positive=dict(tau=tau))

    def compute(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor,
        weights: Tensor,
        avg_factor: AvgFactor,
    ) -> Tensor:
        return kd_loss(student_logits, teacher_logits, weights, tau=self.tau)
