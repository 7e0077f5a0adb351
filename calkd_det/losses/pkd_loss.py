"""Pearson-correlation distillation of feature maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet.registry import MODELS
from torch import Tensor, linalg

from calkd_det.losses.base import FeatureLoss
from calkd_det.losses.kernels import can_fuse
from calkd_det.losses.levels import compare_by_channels
from calkd_det.losses.standardisation import centre, inverse


def pkd_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    valid: Sequence[Tensor] | None = None,
) -> Tensor:
    r"""Compute the squared distance of standardised feature maps, summed over levels.

    Each channel of a level is standardised over the M places of all images,
    :math:`\hat{x} = (x - \mu) / (\sigma + \epsilon)` with the unbiased :math:`\sigma` and
    :math:`\epsilon = 10^{-6}`:

    .. math::
        \sum_{\text{levels}} \frac{1}{2 M D} \sum_{d=1}^{D} \sum_{m=1}^{M}
        \left(\hat{s}_{md} - \hat{t}_{md}\right)^2

    A level's term is :math:`\frac{M - 1}{M} (1 - \bar{r})` up to :math:`\epsilon`, where
    :math:`\bar{r}` is the mean over channels of Pearson's correlation of student and teacher. So
    neither scale nor offset of a channel counts. (Cao et al., `PKD: General Distillation
    Framework for Object Detectors via Pearson Correlation Coefficient
    <https://arxiv.org/abs/2207.02039>`_, section 3.3.)

    Statistics are those of one process. They are computed in float32.

    Args:
        student: Feature maps by level, float, each of shape (B, D, h, w).
        teacher: As many, of the same shapes. Gradients do not flow into them.
        valid: For each level which places count, bool, shape (B, 1, h, w). Others, such as padding,
            are left out. None where all count.

    Returns:
        A float32 scalar. It can be differentiated once.

    Example:
        >>> import torch
        >>> maps = [torch.randn(2, 8, 4, 4)]
        >>> pkd_loss(maps, [3 * maps[0] + 1]) < 1e-6
        tensor(True)
    """
    return compare_by_channels(_compare, student, teacher, valid)


def _compare(student: Tensor, teacher: Tensor, mask: Tensor | None, slopes: Tensor) -> Tensor:
    r"""Return the distance of some channels and fill in its slopes.

    With :math:`\delta = \hat{s} - \hat{t}` the slope is, before the divisors M and D,

    .. math::
        \frac{1}{\sigma + \epsilon} \left(\delta - \hat{s} \,
        \frac{\sigma + \epsilon}{(M - 1) \, \sigma} \sum_m \delta_m \hat{s}_m\right).

    The sum follows from the norms of :math:`\hat{s}`, :math:`\hat{t}` and :math:`\delta`, so that
    the maps are read less often.
    """
    if can_fuse(student, teacher, slopes):
        from calkd_det.losses.kernels.maps import pkd_distance

        return pkd_distance(student, teacher, mask, slopes)
    own, deviation, degrees = centre(student, mask)
    other, other_deviation, _ = centre(teacher, mask)
    scale, other_scale = inverse(deviation), inverse(other_deviation)
    difference = other.mul_(-other_scale).addcmul_(own, scale)
    distances = linalg.vector_norm(difference, dim=(0, 2, 3), keepdim=True).square()
    lengths = degrees * ((deviation * scale).square() - (other_deviation * other_scale).square())
    products = (lengths + distances) / 2
    share = products / (degrees * deviation).where(deviation > 0, 1.0)
    count = teacher[:, 0].numel() if mask is None else mask.sum().clamp(min=1)
    torch.mul(difference, scale / count, out=slopes)
    slopes.addcmul_(own, share * scale / count, value=-1)
    return distances.sum() / (2 * count)


@MODELS.register_module()
class PKDLoss(FeatureLoss):
    """:func:`pkd_loss` as a registered module.

    Args:
        loss_weight: Factor of the loss, >= 0. Zero switches it off. The authors took 6 for Faster
            R-CNN and 10 for RetinaNet and FCOS.
        num_levels: The number of levels, from the finest, that are compared.

    Raises:
        ConfigError: A number is not finite or out of its range.
    """

    def __init__(self, loss_weight: float = 6.0, num_levels: int = 4) -> None:
        super().__init__(loss_weight, num_levels=num_levels)

    def compute(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        valid: Sequence[Tensor] | None,
        boxes: Sequence[Tensor],
    ) -> Tensor:
        return pkd_loss(student, teacher, valid)
