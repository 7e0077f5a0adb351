"""Channel-wise distillation of feature maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor

from calkd_det.losses.base import FeatureLoss


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
        valid: For each level which places count, bool, shape
            (N, 1, h, w); others, such as padding, are left out. None where all
            count.
        tau: The distillation temperature, > 0, that softens both sides.

    Returns:
        A float32 scalar.

    Example:
        >>> import torch
        >>> maps = [torch.randn(2, 8, 4, 4)]
        >>> cwd_loss(maps, [maps[0] + 1]) < 1e-6
        tensor(True)
    """
    masks = [None] * len(teacher) if valid is None else valid
    return torch.stack([_level(*maps, tau) for maps in zip(student, teacher, masks)]).sum()


def _level(student: Tensor, teacher: Tensor, mask: Tensor | None, tau: float) -> Tensor:
    student, teacher = student.float(), teacher.detach().float()
    own, other = (_log_places(maps / tau, mask) for maps in (student, teacher))
    divergence = F.kl_div(own, other, reduction='none', log_target=True)
    if mask is not None:
        divergence = divergence.masked_fill(~mask.flatten(2), 0.0)
    return tau**2 * divergence.sum() / (teacher.shape[0] * teacher.shape[1])


def _log_places(maps: Tensor, mask: Tensor | None) -> Tensor:
    """Return the log-softmax over the valid places of each channel, shape (N, D, h * w)."""
    if mask is not None:
        # The least number, not -inf, so that no difference of two is a NaN.
        maps = maps.masked_fill(~mask, torch.finfo(maps.dtype).min)
    return maps.flatten(2).log_softmax(dim=2)


@MODELS.register_module()
class CWDLoss(FeatureLoss):
    """:func:`cwd_loss` as a registered module.

    Args:
        tau: The distillation temperature, > 0. It softens teacher and student alike and is not
            the teacher's calibration temperature T.
        loss_weight: Factor of the loss, >= 0. Zero switches it off.
        num_levels: The number of levels, from the finest, that are compared; None for all.

    Raises:
        ConfigError: A number is not finite or out of its range.
    """

    def __init__(
        self, tau: float = 1.0, loss_weight: float = 10.0, num_levels: int | None = None
    ) -> None:
        super().__init__(loss_weight, num_levels=num_levels, positive=dict(tau=tau))

    def compute(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        valid: Sequence[Tensor] | None,
        boxes: Sequence[Tensor],
    ) -> Tensor:
        return cwd_loss(student, teacher, valid, tau=self.tau)
