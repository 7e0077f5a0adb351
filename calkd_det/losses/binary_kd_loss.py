"""Knowledge distillation on sigmoid scores, as dense heads have them."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from mmdet.registry import MODELS
from mmdet.utils import reduce_mean
from torch import Tensor

from calkd_det.errors import ConfigError, did_you_mean
from calkd_det.losses.base import AvgFactor, ClassLoss
from calkd_det.losses.binary_divergence import binary_divergence

Weighting = Literal['all', 'foreground', 'difference']


def binary_kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    tau: float = 1.0,
    weighting: Weighting = 'difference',
    avg_factor: AvgFactor = None,
) -> Tensor:
    r"""Compute the Kullback-Leibler divergence of the student's sigmoid scores from the teacher's.

    Each class of each sample is a Bernoulli distribution of its own, with score p:

    .. math::
        \frac{\tau^2}{F} \sum_n w_n \sum_c v_{nc} \left(
        p^t_{nc} \log \frac{p^t_{nc}}{p^s_{nc}} +
        (1 - p^t_{nc}) \log \frac{1 - p^t_{nc}}{1 - p^s_{nc}} \right),
        \quad p = \sigma(z / \tau)

    The loss is summed over classes and samples and divided by F, the divisor of the student's own
    classification loss: ``avg_factor``. Without it, F is the number of samples with an object:
    the mean over the processes of a distributed training, at least one. Of a hundred thousand
    samples nearly all are background, to which both networks give low scores. The weight
    :math:`v_{nc}` sets how much they count:

    ``'difference'``
        :math:`|p^t - p^s|`. The background counts only where one of the two takes it for an
        object. BCKD (Yang et al., `Bridging Cross-task Protocol Inconsistency for Distillation in
        Dense Object Detection <https://arxiv.org/abs/2308.14286>`_) and CrossKD (Wang et al.,
        `arXiv 2306.11369 <https://arxiv.org/abs/2306.11369>`_) put this weight before a
        cross-entropy. Before the divergence, the loss has its minimum, zero, at equal scores. The
        gradient flows through the weight.
    ``'foreground'``
        1 where the student's head has assigned an object, else 0. This is the region of
        classification in LD (Zheng et al., `arXiv 2102.12252
        <https://arxiv.org/abs/2102.12252>`_). The teacher's scores of the background are not used.
    ``'all'``
        1, the plain divergence. A temperature above one, T of the calibrator or tau, moves the
        scores of all background towards 1/2. Their number makes this the largest part of the loss.

    Memory: see :func:`~calkd_det.losses.binary_divergence.binary_divergence`. ``'foreground'``
    selects the foreground first: nothing is computed of the background, and on a GPU the host
    waits for the selection once.

    Args:
        student_logits: Float, shape (N, C).
        teacher_logits: Float, shape (N, C), already calibrated, i.e. divided by the teacher's
            own temperature T. Gradients do not flow into it.
        labels: Assigned classes, int64, shape (N,); C is the background.
        weights: Float, shape (N,), >= 0.
        tau: The distillation temperature, > 0, that softens both sides.
        weighting: See above.
        avg_factor: F, > 0, a number or a tensor without dimensions. It is used unchanged: where
            the head takes the mean over the processes, it has done so already. None: the number
            of samples with an object, see above.

    Returns:
        A scalar, float32, or float64 where the student's logits are float64; zero, with a graph,
        where there is no sample. It can be differentiated once.

    Example:
        >>> import torch
        >>> z, labels = torch.tensor([[2.0, -1.0]]), torch.tensor([0])
        >>> binary_kd_loss(z, z / 1.5, labels, torch.ones(1)) > 0
        tensor(True)
        >>> binary_kd_loss(z, z, labels, torch.ones(1))
        tensor(0.)
    """
    foreground = (labels < student_logits.shape[1]) & (weights > 0)
    if weighting == 'foreground':
        student_logits, teacher_logits = student_logits[foreground], teacher_logits[foreground]
        weights = weights[foreground]
    total = binary_divergence(
        student_logits,
        teacher_logits,
        weights,
        tau=tau,
        scale_by_difference=weighting == 'difference',
    )
    return tau**2 * total / _divisor(foreground, avg_factor)


def _divisor(foreground: Tensor, avg_factor: AvgFactor) -> float | Tensor:
    if avg_factor is None:
        return reduce_mean(foreground.sum().float()).clamp(min=1)
    # mmdet's own losses add the same, against a division by zero.
    return avg_factor + torch.finfo(torch.float32).eps


@MODELS.register_module()
class BinaryKDLoss(ClassLoss):
    """:func:`binary_kd_loss` as a registered module, for heads that classify by sigmoids.

    Args:
        tau: The distillation temperature, > 0. It softens teacher and student alike and is not
            the teacher's calibration temperature T.
        loss_weight: Factor of the loss, >= 0. Zero switches it off.
        weighting: ``'difference'``, ``'foreground'`` or ``'all'``, see
            :func:`binary_kd_loss`.

    Raises:
        ConfigError: A number is not finite or out of its range, or the weighting is none of
            these.
    """

    activation = 'sigmoid'

    def __init__(
        self, tau: float = 1.0, loss_weight: float = 1.0, weighting: Weighting = 'difference'
    ) -> None:
        super().__init__(loss_weight, positive=dict(tau=tau))
        self.weighting = _check_weighting(weighting)

    def compute(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor,
        weights: Tensor,
        avg_factor: AvgFactor,
    ) -> Tensor:
        return binary_kd_loss(
            student_logits,
            teacher_logits,
            labels,
            weights,
            tau=self.tau,
            weighting=self.weighting,
            avg_factor=avg_factor,
        )


def _check_weighting(value: Any) -> Weighting:
    known = get_args(Weighting)
    if value not in known:
        raise ConfigError(
            f'distillation.weighting must be {", ".join(map(repr, known[:-1]))} or {known[-1]!r}, '
            f'but is {value!r}; {did_you_mean(str(value), known)}'
        )
    return value
