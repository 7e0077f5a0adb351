"""Decoupled Knowledge Distillation on class logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor

from calkd_det.losses.averaging import mean_over_samples
from calkd_det.losses.base import AvgFactor, ClassLoss


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    alpha: float = 1.0,
    beta: float | Tensor = 0.25,
    tau: float = 1.0,
) -> Tensor:
    r"""Compute KD in two separate parts: the target's score, and the other classes.

    .. math::
        \frac{\tau^2}{|\{n : w_n > 0\}|} \sum_n w_n \left(\alpha \, \mathrm{TCKD}_n
        + \beta \, \mathrm{NCKD}_n\right)

    With p = softmax(z / tau) and y the sample's assigned class, the background included:

    - TCKD = KL((p^t_y, 1 - p^t_y) || (p^s_y, 1 - p^s_y)), of the target's score;
    - NCKD = KL(q^t || q^s), with q = p / (1 - p_y) over the classes other than y.

    Plain KD is alpha = 1 and beta = 1 - p^t_y. There a teacher that is sure of the target teaches
    nothing about the other classes. (Zhao et al., `Decoupled Knowledge Distillation
    <https://arxiv.org/abs/2203.08679>`_, CVPR 2022, section 3.)

    Everything is computed from differences of logarithms, in float32 also under autocast. Loss
    and gradient stay finite where a score is 0 or 1 in float32.

    Args:
        student_logits: Float, shape (N, K), K >= 2.
        teacher_logits: Float, shape (N, K), already calibrated, i.e. divided by the teacher's
            own temperature T. Gradients do not flow into it.
        labels: Assigned classes in [0, K), int64, shape (N,). Those of samples with weight 0 are
            ignored.
        weights: Float, shape (N,), >= 0.
        alpha: Factor of the target's part, >= 0.
        beta: Factor of the other classes' part, >= 0, or one for each sample, float, shape
            (N,).
        tau: The distillation temperature, > 0, that softens both sides.

    Returns:
        A float32 scalar; zero, with a graph, where there is no sample.

    Example:
        >>> import torch
        >>> z_s, z_t = torch.tensor([[[2.0, 0.0, -1.0]], [[4.0, 1.0, 0.0]]])
        >>> label, one = torch.tensor([0]), torch.ones(1)
        >>> dkd_loss(z_s, z_t, label, one, beta=0.0) > 0  # the target's score differs
        tensor(True)
        >>> dkd_loss(z_s, z_t, label, one, alpha=0.0, beta=1.0) < 1e-6  # (0, -1) is as (1, 0)
        tensor(True)
    """
    is_target = labels[:, None] == torch.arange(student_logits.shape[1], device=labels.device)
    margin_s, log_q_s = _decouple(student_logits.float() / tau, is_target)
    margin_t, log_q_t = _decouple(teacher_logits.detach().float() / tau, is_target)
    target = margin_t.sigmoid() * (F.logsigmoid(margin_t) - F.logsigmoid(margin_s))
    target = target + (-margin_t).sigmoid() * (F.logsigmoid(-margin_t) - F.logsigmoid(-margin_s))
    others = (log_q_t.exp() * (log_q_t - log_q_s)).sum(dim=1)
    return tau**2 * mean_over_samples(alpha * target + beta * others, weights)


def _decouple(logits: Tensor, is_target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-odds of the target, (N,), and the log-scores among the other classes, (N, K).

    The target's own log-score is set to 0, so that teacher and student do not differ there.
    """
    log_sum_others = logits.masked_fill(is_target, -torch.inf).logsumexp(dim=1, keepdim=True)
    log_scores = logits - log_sum_others
    margin = log_scores.where(is_target, 0.0).sum(dim=1)
    return margin, log_scores.masked_fill(is_target, 0.0)


@MODELS.register_module()
class DKDLoss(ClassLoss):
    """:func:`dkd_loss` as a registered module.

    The defaults are those of the authors' released code for Faster R-CNN on COCO. Its defaults
    for image classification (CIFAR-100) are alpha = 1, beta = 8, tau = 4.

    Args:
        alpha: Factor of the target's part, >= 0.
        beta: Factor of the other classes' part, >= 0.
        tau: The distillation temperature, > 0. It softens teacher and student alike and is not
            the teacher's calibration temperature T.
        loss_weight: Factor of the loss, >= 0. Zero switches it off.

    Raises:
        ConfigError: An argument is not a finite number in its range.
    """

    activation = 'softmax'

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 0.25,
        tau: float = 1.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(
            loss_weight, positive=dict(tau=tau), non_negative=dict(alpha=alpha, beta=beta)
        )

    def compute(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor,
        weights: Tensor,
        avg_factor: AvgFactor,
    ) -> Tensor:
        return dkd_loss(
            student_logits,
            teacher_logits,
            labels,
            weights,
            alpha=self.alpha,
            beta=self.beta,
            tau=self.tau,
        )
