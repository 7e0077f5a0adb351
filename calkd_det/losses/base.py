"""Base classes of the distillation losses."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from calkd_det.config import check_number
from calkd_det.errors import ConfigError
from calkd_det.knowledge import BoxPredictions, Kind, KnowledgeSizes

# The divisor of a head's own classification loss; None where it is not known.
AvgFactor = float | Tensor | None


class DistillationLoss(nn.Module, ABC):
    """Base class of the distillation losses of every kind.

    A loss of one's own derives from :class:`ClassLoss`, :class:`BoxLoss` or
    :class:`FeatureLoss`. It keeps each argument of its constructor in an attribute of the same
    name. ``repr`` prints these, and the losses of a resumed run are compared by ``repr``.

    Args:
        loss_weight: Factor of the loss, >= 0. Zero switches the loss off. Where all are off, the
            step is the plain detector's, bit for bit, and no teacher is loaded.
        positive: Further arguments that must be finite and > 0, by name, such as ``tau``. Each
            becomes an attribute.
        non_negative: Further arguments that must be finite and >= 0, by name. Each becomes an
            attribute.

    Attributes:
        kind: What the loss compares, a :data:`~calkd_det.knowledge.Kind`.

    Raises:
        ConfigError: A number is not finite or out of its range.
    """

    kind: ClassVar[Kind]

    def __init__(
        self,
        loss_weight: float = 1.0,
        *,
        positive: Mapping[str, float] = MappingProxyType({}),
        non_negative: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.loss_weight = check_number(loss_weight, 'distillation.loss_weight', minimum_open=False)
        for name, value in positive.items():
            setattr(self, name, check_number(value, f'distillation.{name}'))
        for name, value in non_negative.items():
            setattr(self, name, check_number(value, f'distillation.{name}', minimum_open=False))

    def check_sizes(self, sizes: KnowledgeSizes, key: str) -> None:
        """Check before the first step that the loss can compare student and teacher.

        Args:
            sizes: What is known of both.
            key: The config key of the loss.

        Raises:
            ConfigError: It cannot.
        """

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.extra_repr()})'

    def extra_repr(self) -> str:
        names = inspect.signature(type(self)).parameters
        return ', '.join(f'{name}={getattr(self, name)!r}' for name in names)


class ClassLoss(DistillationLoss):
    """Base class of the losses of class logits.

    A subclass sets ``activation``, gives its arguments their default values, and computes its
    loss in :meth:`compute`.

    Args:
        loss_weight: See :class:`DistillationLoss`, as for the other arguments.
        positive: See there.
        non_negative: See there.

    Attributes:
        activation: The scores that the loss compares, ``'softmax'`` or ``'sigmoid'``.

    Raises:
        ConfigError: A number is not finite or out of its range, or the subclass has no
            ``activation``.
    """

    kind = 'class'
    activation: Literal['softmax', 'sigmoid']

    def __init__(
        self,
        loss_weight: float = 1.0,
        *,
        positive: Mapping[str, float] = MappingProxyType({}),
        non_negative: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        super().__init__(loss_weight, positive=positive, non_negative=non_negative)
        activation = getattr(self, 'activation', None)
        if activation not in ('softmax', 'sigmoid'):
            raise ConfigError(
                f"{type(self).__name__}.activation must be 'softmax' or 'sigmoid', but is "
                f'{activation!r}: set it in the class'
            )

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor,
        weights: Tensor,
        avg_factor: AvgFactor = None,
    ) -> Tensor:
        """Compute the weighted loss, outside of autocast.

        Args:
            student_logits: Float, shape (N, C + 1) with the background last for ``'softmax'``,
                (N, C) for ``'sigmoid'``.
            teacher_logits: Calibrated, float, of the same shape.
            labels: Assigned classes, int64, shape (N,); C is the background.
            weights: Float, shape (N,), >= 0.
            avg_factor: The divisor of the classification loss of the student's head, a number or
                a tensor without dimensions; None where it is not known. A loss that is a mean
                over samples ignores it, because RoI heads divide by the same number of samples.

        Returns:
            A scalar, float32.
        """
        with torch.autocast(student_logits.device.type, enabled=False):
            loss = self.compute(student_logits, teacher_logits, labels, weights, avg_factor)
        return self.loss_weight * loss

    @abstractmethod
    def compute(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor,
        weights: Tensor,
        avg_factor: AvgFactor,
    ) -> Tensor:
        """Compute the loss before ``loss_weight``; the arguments are those of :meth:`forward`."""


class BoxLoss(DistillationLoss):
    """Base class of the losses of predicted boxes.

    A subclass gives its arguments their default values and computes its loss in :meth:`compute`.
    The arguments are those of :class:`DistillationLoss`.
    """

    kind = 'box'

    def check_sizes(self, sizes: KnowledgeSizes, key: str) -> None:
        """See :meth:`DistillationLoss.check_sizes`."""
        self.check_bins(*sizes.box_bins, key)

    def check_bins(
        self, student: int | None, teacher: int | None, key: str = 'distillation'
    ) -> None:
        """Check before the first step what the heads predict for each side of a box.

        Args:
            student: Number of bins of the distribution that the student's head predicts; None
                where it predicts no distribution.
            teacher: The same of the teacher's head.
            key: The config key of the loss.

        Raises:
            ConfigError: The loss cannot compare them.
        """

    def forward(
        self,
        student: BoxPredictions,
        teacher: BoxPredictions,
        student_scores: Tensor,
        teacher_scores: Tensor,
        labels: Tensor,
        weights: Tensor,
    ) -> Tensor:
        """Compute the weighted loss, outside of autocast.

        Args:
            student: What the student predicts for M foreground samples.
            teacher: What the teacher predicts for the same samples.
            student_scores: The student's probabilities of the C classes, float32, shape (M, C),
                without a graph.
            teacher_scores: The teacher's calibrated probabilities, float32, shape (M, C).
            labels: Assigned classes, int64, shape (M,), below C.
            weights: The head's weights of the samples, float, shape (M,), >= 0.

        Returns:
            A scalar, float32. It is zero, with a graph, where there is no sample.
        """
        with torch.autocast(student.boxes.device.type, enabled=False):
            loss = self.compute(student, teacher, student_scores, teacher_scores, labels, weights)
        return self.loss_weight * loss

    @abstractmethod
    def compute(
        self,
        student: BoxPredictions,
        teacher: BoxPredictions,
        student_scores: Tensor,
        teacher_scores: Tensor,
        labels: Tensor,
        weights: Tensor,
    ) -> Tensor:
        """Compute the loss before ``loss_weight``; the arguments are those of :meth:`forward`."""


class FeatureLoss(DistillationLoss):
    """Base class of the losses of feature maps.

    A subclass gives its arguments their default values and computes its loss in :meth:`compute`.

    Args:
        loss_weight: See :class:`DistillationLoss`, as for ``positive`` and ``non_negative``.
        num_levels: The number of levels, from the finest, that are compared; None for all.
        positive: See there.
        non_negative: See there.

    Raises:
        ConfigError: A number is not finite or out of its range.
    """

    kind = 'features'

    def __init__(
        self,
        loss_weight: float = 1.0,
        *,
        num_levels: int | None = None,
        positive: Mapping[str, float] = MappingProxyType({}),
        non_negative: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        super().__init__(loss_weight, positive=positive, non_negative=non_negative)
        if num_levels is not None and (type(num_levels) is not int or num_levels < 1):
            raise ConfigError(
                'distillation.num_levels must be an integer >= 1, or None for all levels, but is '
                f'{num_levels!r}'
            )
        self.num_levels = num_levels

    def check_sizes(self, sizes: KnowledgeSizes, key: str) -> None:
        """See :meth:`DistillationLoss.check_sizes`."""
        self.check_widths(*sizes.feature_widths, key)

    def check_widths(
        self, student: Sequence[int], teacher: Sequence[int], key: str = 'distillation'
    ) -> None:
        """Check the numbers of channels before the first step.

        Args:
            student: Channels of each level of the student's feature maps.
            teacher: Channels of each level of the teacher's.
            key: The config key of the loss.

        Raises:
            ConfigError: The loss cannot compare such maps.
        """
        for level, (own, other) in enumerate(zip(student[: self.num_levels], teacher)):
            if own != other:
                raise ConfigError(
                    f'{key}: {type(self).__name__} compares channel by channel, but level '
                    f'{level} of the student has {own} channels and that of the teacher {other}. '
                    "Set the out_channels of the student's neck to the teacher's, or take a loss "
                    'with a convolution between them, such as CWDLoss'
                )

    def forward(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        valid: Sequence[Tensor] | None = None,
        boxes: Sequence[Tensor] = (),
    ) -> Tensor:
        """Compute the weighted loss, outside of autocast.

        Args:
            student: Feature maps of L levels, float, each of shape (B, D, h, w).
            teacher: As many, each of the same batch, height and width, (B, D', h, w).
            valid: For each level which places count, bool, shape (B, 1, h, w); None where all do.
            boxes: For each image the boxes of its objects, float, shape (G, 4), x1, y1, x2, y2 as
                shares of width and height of the batched image.

        Returns:
            A scalar, float32.
        """
        with torch.autocast(student[0].device.type, enabled=False):
            levels = slice(self.num_levels)
            valid = None if valid is None else valid[levels]
            loss = self.compute(student[levels], teacher[levels], valid, boxes)
        return self.loss_weight * loss

    @abstractmethod
    def compute(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        valid: Sequence[Tensor] | None,
        boxes: Sequence[Tensor],
    ) -> Tensor:
        """Compute the loss before ``loss_weight``; the arguments are those of :meth:`forward`."""
