"""Multi-level Logit Distillation on class logits."""

from __future__ import annotations

from collections.abc import Sequence

from mmdet.registry import MODELS
from torch import Tensor

from calkd_det.config import check_number
from calkd_det.errors import ConfigError
from calkd_det.losses.averaging import count_samples
from calkd_det.losses.base import AvgFactor, ClassLoss
from calkd_det.losses.kd_loss import kd_loss

DEFAULT_TAUS = (2.0, 3.0, 4.0, 5.0, 6.0)


def mlld_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    weights: Tensor,
    *,
    taus: Sequence[float] = DEFAULT_TAUS,
    instance_weight: float = 1.0,
    batch_weight: float = 1.0,
    class_weight: float = 1.0,
    batch_size: float | None = 64.0,
) -> Tensor:
    r"""Compute KD on three levels: each sample, pairs of samples and pairs of classes.

    .. math::
        \sum_\tau \lambda_i \, \mathrm{KD}_\tau
        + \frac{\lambda_b}{N} \|P^s {P^s}^\top - P^t {P^t}^\top\|_F^2 \, \frac{B}{N}
        + \frac{\lambda_c}{K} \|{P^s}^\top P^s - {P^t}^\top P^t\|_F^2 \, \frac{B^2}{N^2}

    P (N, K) are the scores softmax(z / tau) of the N samples with a weight above zero, the rows
    multiplied by the square root of their weights; KD_tau is :func:`~calkd_det.losses.kd_loss`
    with its factor tau^2, which the other two levels do not have. The background is a class
    like any other. (Jin et al., `Multi-Level Logit Distillation
    <https://openaccess.thecvf.com/content/CVPR2023/html/Jin_Multi-Level_Logit_Distillation_CVPR_2023_paper.html>`_,
    CVPR 2023.)

    Two things differ from the authors' released code:

    - The factors of B / N. Without them the batch level grows with N and the class level with
      N^2. The authors balanced the levels with 64 images. With thousands of RoIs, early in
      training, these two would outweigh all other losses. With the factors both are as large as
      in a batch of B. ``batch_size=None`` leaves them out.
    - No masks and no second view. The code takes two augmentations of each image and computes
      masks that keep the less confident half of samples and of classes. It applies the masks to
      values that are averaged already, so they select nothing and only halve the values.

    The N x N matrices are never built. With D = P^s - P^t and S = P^s + P^t both differences are
    made of D^T D, S^T S and D^T S, each (K, K): memory is O(N K + K^2) for each tau, 1.3 MB
    instead of 67 MB a matrix for 4,096 RoIs and 81 logits. Nothing of the size of P^s is
    subtracted, so that no digits are lost where student and teacher are close. Logits of any
    precision are computed in float32. Autocast would compute the products in half precision, so
    :class:`MLLDLoss` switches it off.

    Args:
        student_logits: Float, shape (N, K).
        teacher_logits: Float, shape (N, K), already calibrated, i.e. divided by the teacher's
            own temperature T. Gradients do not flow into it.
        weights: Float, shape (N,), >= 0.
        taus: The distillation temperatures, each > 0, that soften both sides. The loss is
            the sum over them.
        instance_weight: Factor of the sample by sample level, >= 0.
        batch_weight: Factor of the level that compares samples with each other, >= 0.
        class_weight: Factor of the level that compares classes with each other, >= 0. With few
            classes this level, of the size of B^2 / K, outgrows the others.
        batch_size: B, > 0; None for the plain sums.

    Returns:
        A float32 scalar; zero, with a graph, where there is no sample.

    Example:
        >>> import torch
        >>> z = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
        >>> mlld_loss(z, z / 1.5, torch.ones(2)) > 0
        tensor(True)
        >>> mlld_loss(z, z, torch.ones(2))
        tensor(0.)
    """
    student, teacher = student_logits.float(), teacher_logits.detach().float()
    count = count_samples(weights)
    scale = 1.0 if batch_size is None else batch_size / count
    loss = student.new_zeros(())
    for tau in taus:
        batch, classes = _correlation_distances(student / tau, teacher / tau, weights)
        loss = loss + instance_weight * kd_loss(student, teacher, weights, tau=tau)
        loss = loss + batch_weight * scale * batch / count
        loss = loss + class_weight * scale**2 * classes / student.shape[1]
    return loss


def _correlation_distances(
    student: Tensor, teacher: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Return squared Frobenius distances of the scores' (N, N) and (K, K) Gram matrices.

    With A = (S + D) / 2 and B = (S - D) / 2, A A^T - B B^T is (S D^T + D S^T) / 2, whose squared
    norm is a sum of traces of (K, K) products; A^T A - B^T B is (S^T D + D^T S) / 2.
    """
    root = weights.float().sqrt()[:, None]
    scores_s, scores_t = student.softmax(dim=1), teacher.softmax(dim=1)
    difference, total = root * (scores_s - scores_t), root * (scores_s + scores_t)
    cross = difference.T @ total
    batch = ((difference.T @ difference) * (total.T @ total)).sum() + (cross * cross.T).sum()
    return batch / 2, ((cross + cross.T) / 2).square().sum()


@MODELS.register_module()
class MLLDLoss(ClassLoss):
    """:func:`mlld_loss` as a registered module.

    The temperatures and ``batch_size`` are those of the authors' released code for CIFAR-100
    classification; the levels are added with equal weights. Nothing here was tuned for detection.
    The loss is a sum over the temperatures, the instance level with factors tau^2 from 4 to 36,
    and large beside a classification loss: start with a small ``loss_weight``.

    Args:
        taus: The distillation temperatures, each > 0. They soften teacher and student alike and
            are not the teacher's calibration temperature T.
        instance_weight: Factor of the sample by sample level, >= 0.
        batch_weight: Factor of the level that compares samples with each other, >= 0.
        class_weight: Factor of the level that compares classes with each other, >= 0.
        batch_size: How many samples the batch and class level are scaled to, > 0; None: not
            scaled, as in the paper.
        loss_weight: Factor of the loss, >= 0. Zero switches it off.

    Raises:
        ConfigError: An argument is not a finite number in its range, or ``taus`` is no list of
            such numbers.
    """

    activation = 'softmax'

    def __init__(
        self,
        taus: Sequence[float] = DEFAULT_TAUS,
        instance_weight: float = 1.0,
        batch_weight: float = 1.0,
        class_weight: float = 1.0,
        batch_size: float | None = 64.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(
            loss_weight,
            non_negative=dict(
                instance_weight=instance_weight,
                batch_weight=batch_weight,
                class_weight=class_weight,
            ),
        )
        if not isinstance(taus, Sequence) or isinstance(taus, str) or not taus:
            raise ConfigError(
                f'distillation.taus must be a list of at least one number > 0, but is {taus!r}'
            )
        self.taus = tuple(
            check_number(tau, f'distillation.taus[{index}]') for index, tau in enumerate(taus)
        )
        if batch_size is not None:
            batch_size = check_number(batch_size, 'distillation.batch_size', hint='or None')
        self.batch_size = batch_size

    def compute(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor,
        weights: Tensor,
        avg_factor: AvgFactor,
    ) -> Tensor:
        return mlld_loss(
            student_logits,
            teacher_logits,
            weights,
            taus=self.taus,
            instance_weight=self.instance_weight,
            batch_weight=self.batch_weight,
            class_weight=self.class_weight,
            batch_size=self.batch_size,
        )
