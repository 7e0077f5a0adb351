"""Localisation distillation: the distributions that GFL predicts for the sides of a box."""

from __future__ import annotations

from mmdet.registry import MODELS
from mmdet.utils import reduce_mean
from torch import Tensor

from calkd_det.errors import ConfigError
from calkd_det.knowledge import BoxPredictions
from calkd_det.losses.base import BoxLoss


def ld_loss(
    student_logits: Tensor, teacher_logits: Tensor, weights: Tensor, *, tau: float = 10.0
) -> Tensor:
    r"""Compare the distributions of the sides of the boxes of foreground samples.

    .. math::
        \frac{\tau^2}{\max(1, \sum_m w_m)} \sum_m w_m \,
        \frac{1}{4} \sum_{i=1}^{4} \frac{1}{R} \mathrm{KL}(p^t_{mi} \| p^s_{mi}), \quad
        p = \mathrm{softmax}(z / \tau)

    as in Zheng et al., "Localization Distillation for Dense Object Detection", CVPR 2022,
    arXiv:2102.12252, whose code averages over the R bins. The divisor is that of the box losses
    of mmdet's ``GFLHead``: the sum of the weights, as a mean over the processes of a distributed
    training.

    Args:
        student_logits: Float, shape (M, 4, R).
        teacher_logits: Float, shape (M, 4, R). Gradients do not flow into it.
        weights: Float, shape (M,), >= 0.
        tau: The distillation temperature, > 0, that softens both sides.

    Returns:
        A float32 scalar; zero, with a graph, where there is no sample.
    """
    student = (student_logits.float() / tau).log_softmax(dim=-1)
    teacher = (teacher_logits.detach().float() / tau).log_softmax(dim=-1)
    divergence = (teacher.exp() * (teacher - student)).mean(dim=(1, 2))
    weights = weights.float().detach()
    return tau**2 * (weights * divergence).sum() / reduce_mean(weights.sum()).clamp(min=1)


@MODELS.register_module()
class LDLoss(BoxLoss):
    """:func:`ld_loss` as a registered module, for a ``GFLHead`` taught by a ``GFLHead``.

    The weight of a sample is the head's own weight times the student's highest class score, as in
    the head's own loss. Gradients do not flow into the weight.

    Args:
        tau: The distillation temperature, > 0. It softens teacher and student alike and is not
            the teacher's calibration temperature T.
        loss_weight: Factor of the loss, >= 0. Zero switches it off.

    Raises:
        ConfigError: A number is not finite or out of its range.
    """

    def __init__(self, tau: float = 10.0, loss_weight: float = 0.25) -> None:
        super().__init__(loss_weight, positive=dict(tau=tau))

    def check_bins(
        self, student: int | None, teacher: int | None, key: str = 'distillation'
    ) -> None:
        """See :meth:`BoxLoss.check_bins`."""
        for who, bins in (('student', student), ('teacher', teacher)):
            if bins is None:
                raise ConfigError(
                    f'{key}: LDLoss compares distributions of the sides of a box, but the '
                    f'head of the {who} predicts none. It needs a GFLHead on both sides; for '
                    'other heads take BoxKDLoss'
                )
        if student != teacher:
            raise ConfigError(
                f'{key}: LDLoss compares bin by bin, but the head of the student predicts '
                f'{student} bins for each side of a box and that of the teacher {teacher}. Set '
                f"reg_max={teacher - 1} in the student's bbox_head, or take BoxKDLoss"
            )

    def compute(
        self,
        student: BoxPredictions,
        teacher: BoxPredictions,
        student_scores: Tensor,
        teacher_scores: Tensor,
        labels: Tensor,
        weights: Tensor,
    ) -> Tensor:
        confidence = student_scores.amax(dim=1)
        return ld_loss(
            student.distribution, teacher.distribution, weights * confidence, tau=self.tau
        )
