"""Channel-wise distillation of feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from mmdet.registry import MODELS
from torch import Tensor, nn

from calkd_det.errors import ConfigError
from calkd_det.losses.kernels import can_fuse
from calkd_det.losses.learnt import LearntFeatureLoss, alignment
from calkd_det.losses.levels import compare_by_channels, iterate_levels
from calkd_det.losses.standardisation import standardise


def cwd_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    valid: Sequence[Tensor] | None = None,
    *,
    tau: float = 1.0,
) -> Tensor:
    r"""Compute the divergence of where each channel is active, summed over levels.

    The values of a channel of an image become a distribution over its places,
    :math:`\phi(x) = \mathrm{softmax}(x / \tau)`:

    .. math::
        \sum_{\text{levels}} \frac{\tau^2}{N D} \sum_{n=1}^{N} \sum_{d=1}^{D}
        \mathrm{KL}\left(\phi(t_{nd}) \,\|\, \phi(s_{nd})\right)

    (Shu et al., `Channel-wise Knowledge Distillation for Dense Prediction
    <https://arxiv.org/abs/2011.13256>`_, section 3.2.) It is computed in float32.

    Args:
        student: Feature maps by level, float, each of shape (N, D, h, w).
        teacher: As many, of the same shapes. Gradients do not flow into them.
        valid: For each level which places count, bool, shape (N, 1, h, w). Others, such as padding,
            are left out. None where all count.
        tau: The distillation temperature, > 0, that softens both sides.

    Returns:
        A float32 scalar. It can be differentiated once.

    Example:
        >>> import torch
        >>> maps = [torch.randn(2, 8, 4, 4)]
        >>> cwd_loss(maps, [maps[0] + 1]) < 1e-6
        tensor(True)
    """
    compare = partial(_compare, tau=tau)
    return compare_by_channels(compare, student, teacher, valid, tau / len(teacher[0]))


def _compare(
    student: Tensor, teacher: Tensor, mask: Tensor | None, slopes: Tensor, tau: float
) -> Tensor:
    r"""Return the divergences of some channels per image, and fill in slopes.

    The slope of a divergence is :math:`(\phi(s) - \phi(t)) / \tau`; what is filled in has no
    divisor.
    """
    if can_fuse(student, teacher, slopes):
        from calkd_det.losses.kernels.maps import softmax_divergence

        divergence = softmax_divergence(student, teacher, mask, slopes, tau)
        return divergence * (tau**2 / len(teacher))
    own, other = (_rows(maps, mask, tau) for maps in (student, teacher))
    own_shares, own_constant = _softmax(own)
    shares, constant = _softmax(other)
    torch.sub(own_shares.view_as(slopes), shares.view_as(slopes), out=slopes)
    log_ratios = (other - own).sub_(constant - own_constant)
    return log_ratios.mul_(shares).sum() * (tau**2 / len(teacher))


def _rows(maps: Tensor, mask: Tensor | None, tau: float) -> Tensor:
    """Return the values of each channel, shape (N, D, h * w), the least number where masked."""
    if tau != 1:
        maps = maps / tau
    if mask is not None:
        # Not -inf, so that no difference of two is a NaN.
        maps = maps.masked_fill(~mask, torch.finfo(maps.dtype).min)
    return maps.flatten(2)


def _softmax(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the softmax over the last dimension, and the logarithm of its divisor, (…, 1).

    The divisor is one over the largest share, so that each exponential is computed once.
    """
    shares = rows.softmax(dim=-1)
    highest, largest = (x.amax(dim=-1, keepdim=True) for x in (rows, shares))
    return shares, highest - largest.log()


@MODELS.register_module()
class CWDLoss(LearntFeatureLoss):
    """:func:`cwd_loss` as a registered module.

    Where the student has another number of channels than the teacher, a 1 x 1 convolution for each
    level takes its maps to the teacher's channels. It is trained with the student and is no part
    of it. It has no bias, because the softmax over places does not change with an offset.

    Args:
        tau: The distillation temperature, > 0. It softens teacher and student alike and is not
            the teacher's calibration temperature T.
        loss_weight: Factor of the loss, >= 0. Zero switches it off. The authors took 10 a level
            for RetinaNet, RTMDet's recipe has 1.
        num_levels: The number of levels, from the finest, that are compared; None for all. It must
            be given where there are convolutions.
        student_channels: The number of channels of the student's feature maps.
        teacher_channels: The number of channels of the teacher's feature maps. Where both are
            equal there is no convolution, and the maps may have any number of channels.
        standardise: Whether each channel of both sides is first standardised over the places of
            the batch, as by a BatchNorm without affine parameters and running statistics. Then
            channels of large values are not sharper distributions than others. RTMDet's recipe
            does it, because the necks of its sizes differ in scale.

    Raises:
        ConfigError: A number is not finite or out of its range, or ``num_levels`` is missing.
    """

    def __init__(
        self,
        tau: float = 1.0,
        loss_weight: float = 10.0,
        num_levels: int | None = None,
        student_channels: int = 256,
        teacher_channels: int = 256,
        standardise: bool = False,
    ) -> None:
        super().__init__(
            loss_weight,
            num_levels=num_levels,
            student_channels=student_channels,
            teacher_channels=teacher_channels,
            positive=dict(tau=tau),
        )
        if not isinstance(standardise, bool):
            raise ConfigError(
                f'distillation.standardise must be True or False, but is {standardise!r}'
            )
        self.standardise = standardise

    def has_parts(self) -> bool:
        return self.student_channels != self.teacher_channels

    def build_level(self) -> nn.Module:
        return alignment(self.student_channels, self.teacher_channels, bias=False)

    def check_widths(
        self, student: Sequence[int], teacher: Sequence[int], key: str = 'distillation'
    ) -> None:
        """See :meth:`FeatureLoss.check_widths`."""
        compared = list(zip(student, teacher))[: self.num_levels]
        if not self.levels and any(own != other for own, other in compared):
            width = compared[0]
            raise ConfigError(
                f'{key}: the levels of the student have {", ".join(str(x) for x, _ in compared)} '
                f'channels, those of the teacher {", ".join(str(x) for _, x in compared)}. For a '
                f'convolution between them write {key}.student_channels={width[0]}, '
                f'{key}.teacher_channels={width[1]}, {key}.num_levels={len(compared)}'
            )
        super().check_widths(student, teacher, key)

    def compute(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        valid: Sequence[Tensor] | None,
        boxes: Sequence[Tensor],
    ) -> Tensor:
        if self.levels:
            student = [self.call_level(index, maps.float()) for index, maps in enumerate(student)]
        if self.standardise:
            levels = [
                (standardise(own, mask), standardise(other, mask))
                for own, other, mask in iterate_levels(student, teacher, valid)
            ]
            student, teacher = zip(*levels)
        return cwd_loss(student, teacher, valid, tau=self.tau)
