"""Focal and global distillation of feature maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet.registry import MODELS
from torch import Tensor, nn

from calkd_det.losses.global_context import GlobalContext
from calkd_det.losses.learnt import LearntFeatureLoss, alignment
from calkd_det.losses.levels import iterate_levels


def fgd_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    boxes: Sequence[Tensor],
    valid: Sequence[Tensor] | None = None,
    *,
    foreground_weight: float = 5e-5,
    background_weight: float = 2.5e-5,
    attention_weight: float = 5e-5,
    tau: float = 0.5,
) -> Tensor:
    r"""Compute the focal terms of FGD, those without learnt parts, summed over levels.

    :func:`attention` gives each place p and channel d of an image a spatial attention
    :math:`A^S_p` and a channel attention :math:`A^C_d`:

    .. math::
        \frac{1}{N} \sum \left[
        \left(\alpha M^{fg}_p + \beta M^{bg}_p\right) A^S_{t,p} A^C_{t,d} (s_{dp} - t_{dp})^2
        \right] + \frac{\gamma}{N} \left(\|A^S_s - A^S_t\|_1 + \|A^C_s - A^C_t\|_1\right)

    :math:`M^{fg}` and :math:`M^{bg}` are those of :func:`box_masks`. (Yang et al., `Focal and
    Global Knowledge Distillation for Detectors <https://arxiv.org/abs/2111.11837>`_, section 3.1.)
    It is computed in float32.

    Args:
        student: Feature maps by level, float, each of shape (N, D, h, w).
        teacher: As many, of the same shapes. Gradients do not flow into them.
        boxes: For each image the boxes of its objects, float, shape (G, 4), x1, y1, x2, y2 as
            shares of width and height of the batched image.
        valid: For each level which places count, bool, shape (N, 1, h, w). Others, such as padding,
            are left out. None where all count.
        foreground_weight: Factor alpha of the places inside of boxes, >= 0.
        background_weight: Factor beta of the other places, >= 0.
        attention_weight: Factor gamma of the difference of attentions, >= 0.
        tau: The distillation temperature of the attentions, > 0, alike on both sides.

    Returns:
        A float32 scalar.

    Example:
        >>> import torch
        >>> maps, boxes = [torch.randn(1, 8, 4, 4)], [torch.tensor([[0.0, 0.0, 0.5, 0.5]])]
        >>> fgd_loss(maps, maps, boxes)
        tensor(0.)
    """
    terms = []
    for own, other, mask in iterate_levels(student, teacher, valid):
        places, channels = attention(own, mask, tau)
        teacher_places, teacher_channels = attention(other, mask, tau)
        foreground, background = box_masks(boxes, other, mask)
        focus = foreground_weight * foreground + background_weight * background
        squares = (own - other).square() * (focus * teacher_places * teacher_channels)
        differences = (places - teacher_places).abs().sum() + (
            channels - teacher_channels
        ).abs().sum()
        terms.append((squares.sum() + attention_weight * differences) / len(other))
    return torch.stack(terms).sum()


def attention(maps: Tensor, valid: Tensor | None, tau: float) -> tuple[Tensor, Tensor]:
    r"""Return how much each place and each channel of an image stands out.

    The spatial attention is :math:`P \, \mathrm{softmax}_p(\frac{1}{D} \sum_d |x_{dp}| / \tau)`
    over the P places that count. The channel attention is
    :math:`D \, \mathrm{softmax}_d(\frac{1}{P} \sum_p |x_{dp}| / \tau)`.

    Args:
        maps: Float, shape (N, D, h, w).
        valid: Which places count, bool, shape (N, 1, h, w); None where all do.
        tau: The distillation temperature, > 0.

    Returns:
        Spatial attention, shape (N, 1, h, w), 0 at places that do not count; channel attention,
        shape (N, D, 1, 1). The mean of each is 1.
    """
    size = maps.abs()
    logits = size.mean(dim=1, keepdim=True) / tau
    if valid is None:
        count: Tensor | int = maps[0, 0].numel()
        places = count * _softmax_over_places(logits)
    else:
        count = valid.sum(dim=(2, 3), keepdim=True)
        logits = logits.masked_fill(~valid, torch.finfo(logits.dtype).min)
        places = count * _softmax_over_places(logits) * valid
        size, count = size * valid, count.clamp(min=1)
    means = size.sum(dim=(2, 3), keepdim=True) / count
    return places, maps.shape[1] * (means / tau).softmax(dim=1)


@torch.no_grad()
def box_masks(
    boxes: Sequence[Tensor], maps: Tensor, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the weights of the places inside of boxes, and of those outside of all boxes.

    A place inside of a box has the weight 1 / area of the box in places, the largest one where
    boxes overlap. So small objects count as much as large ones. A box covers the places from
    ``floor(x1)`` to ``ceil(x2)``, both included, and alike in y, as in the authors' code. A place
    outside has the weight 1 / number of such places of the image. The host does not wait for the
    device.

    Args:
        boxes: For each image boxes of shape (G, 4), x1, y1, x2, y2 as shares of width and height.
            Empty where no image has any.
        maps: Feature maps, shape (N, D, h, w), which give shape and device.
        valid: Which places count, bool, shape (N, 1, h, w); None where all do.

    Returns:
        Two tensors of float32, shape (N, 1, h, w). They are 0 at places that do not count.
    """
    height, width = maps.shape[2:]
    foreground = torch.zeros(len(maps), 1, height, width, device=maps.device)
    rows = torch.arange(height, device=maps.device)
    columns = torch.arange(width, device=maps.device)
    for (mask,), own in zip(foreground, boxes):
        if not len(own):
            continue
        left, top, right, bottom = own.float().unbind(dim=1)
        left, right = (left * width).floor(), (right * width).ceil()
        top, bottom = (top * height).floor(), (bottom * height).ceil()
        inside_x = (columns >= left[:, None]) & (columns <= right[:, None])
        inside_y = (rows >= top[:, None]) & (rows <= bottom[:, None])
        weights = 1 / ((right + 1 - left) * (bottom + 1 - top))
        inside = inside_y[:, :, None] & inside_x[:, None, :]
        mask.copy_((weights[:, None, None] * inside).amax(dim=0))
    background = foreground == 0
    if valid is not None:
        foreground, background = foreground * valid, background & valid
    count = background.sum(dim=(2, 3), keepdim=True).clamp(min=1)
    return foreground, background / count


def _softmax_over_places(logits: Tensor) -> Tensor:
    return logits.flatten(2).softmax(dim=2).view_as(logits)


class FGDLevel(nn.Module):
    """The learnt parts of a level: the convolution between the widths, and the context blocks."""

    def __init__(self, student_channels: int, teacher_channels: int, context: bool) -> None:
        super().__init__()
        self.align = alignment(student_channels, teacher_channels)
        self.student_context = GlobalContext(teacher_channels) if context else None
        self.teacher_context = GlobalContext(teacher_channels) if context else None

    def forward(
        self, student: Tensor, teacher: Tensor, valid: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Align the student's maps and compare both in their global context.

        Args:
            student: Float, shape (N, D, h, w).
            teacher: Float, shape (N, D', h, w).
            valid: Which places count, bool, shape (N, 1, h, w); None where all do.

        Returns:
            The student's maps with D' channels, and the squared distance, a scalar, of both maps
            with their contexts added, divided by N.
        """
        student = self.align(student)
        if self.student_context is None:
            return student, student.new_zeros(())
        own = student + self.student_context(student, valid)
        other = teacher + self.teacher_context(teacher, valid)
        squares = (own - other).square()
        if valid is not None:
            squares = squares * valid
        return student, squares.sum() / len(teacher)


@MODELS.register_module()
class FGDLoss(LearntFeatureLoss):
    r""":func:`fgd_loss` and the distance of global contexts, as a registered module.

    To the terms of :func:`fgd_loss` it adds :math:`\frac{\lambda}{N} \|GC_s(s) - GC_t(t)\|^2`,
    section 3.2 of the paper. GC adds the context of a
    :class:`~calkd_det.losses.global_context.GlobalContext` to the maps. Both blocks of each level
    are trained with the student and are no part of it. As long as they are untrained, a student
    that equals its teacher has a loss of zero.

    The defaults are the published values for Faster R-CNN and Mask R-CNN. The authors took others
    for other detectors, with ``num_levels=5``:

    - RetinaNet, GFL: ``foreground_weight=1e-3, background_weight=5e-4, attention_weight=5e-4,
      context_weight=5e-6``
    - FCOS: ``1.6e-3, 8e-4, 8e-4, 8e-6`` and ``tau=0.8``

    The teacher's boxes play no part: the boxes are those of the annotations.

    Args:
        foreground_weight: Factor of the places inside of boxes, >= 0, alpha in the paper.
        background_weight: Factor of the other places, >= 0, beta in the paper.
        attention_weight: Factor of the difference of attentions, >= 0, gamma in the paper.
        context_weight: Factor of the distance of global contexts, >= 0, lambda in the paper. With
            0 there are no blocks for them.
        tau: The distillation temperature of the attentions, > 0. It softens teacher and student
            alike and is not the teacher's calibration temperature T.
        loss_weight: Factor of the whole loss, >= 0. Zero switches it off.
        num_levels: The number of levels, from the finest, that are compared.
        student_channels: The number of channels of the student's feature maps. Where it is not the
            teacher's, a 1 x 1 convolution for each level is learnt as well.
        teacher_channels: The number of channels of the teacher's feature maps.

    Raises:
        ConfigError: A number is not finite or out of its range.
    """

    def __init__(
        self,
        foreground_weight: float = 5e-5,
        background_weight: float = 2.5e-5,
        attention_weight: float = 5e-5,
        context_weight: float = 5e-7,
        tau: float = 0.5,
        loss_weight: float = 1.0,
        num_levels: int = 4,
        student_channels: int = 256,
        teacher_channels: int = 256,
    ) -> None:
        super().__init__(
            loss_weight,
            num_levels=num_levels,
            student_channels=student_channels,
            teacher_channels=teacher_channels,
            positive=dict(tau=tau),
            non_negative=dict(
                foreground_weight=foreground_weight,
                background_weight=background_weight,
                attention_weight=attention_weight,
                context_weight=context_weight,
            ),
        )

    def has_parts(self) -> bool:
        return self.context_weight > 0 or self.student_channels != self.teacher_channels

    def build_level(self) -> nn.Module:
        return FGDLevel(self.student_channels, self.teacher_channels, self.context_weight > 0)

    def compute(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        valid: Sequence[Tensor] | None,
        boxes: Sequence[Tensor],
    ) -> Tensor:
        distances = student[0].new_zeros((), dtype=torch.float32)
        if self.levels:
            aligned = []
            for level, maps_of_level in enumerate(iterate_levels(student, teacher, valid)):
                maps, distance = self.call_level(level, *maps_of_level)
                aligned.append(maps)
                distances = distances + distance
            student = aligned
        focal = fgd_loss(
            student,
            teacher,
            boxes,
            valid,
            foreground_weight=self.foreground_weight,
            background_weight=self.background_weight,
            attention_weight=self.attention_weight,
            tau=self.tau,
        )
        return focal + self.context_weight * distances
