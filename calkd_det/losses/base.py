"""Base class of the distillation losses of class logits."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, Union

import torch
from torch import Tensor, nn

from calkd_det.config import check_number
from calkd_det.errors import ConfigError

# The divisor of a head's own classification loss; None where it is not known.
AvgFactor = Union[float, Tensor, None]


class DistillationLoss(nn.Module, ABC):
    """Base class of the distillation losses.

    A subclass sets ``activation``, gives its arguments their default values, and computes its
    loss in :meth:`compute`. It keeps each argument of its constructor in an attribute of the
    same name. ``repr`` prints these, and the losses of a resumed run are compared by ``repr``.

    Args:
        loss_weight: Factor of the loss, >= 0. Zero switches distillation off: the step is then
            the plain detector's, bit for bit, and no teacher is loaded.
        positive: Further arguments that must be finite and > 0, by name, such as ``tau``. Each
            becomes an attribute.
        non_negative: Further arguments that must be finite and >= 0, by name. Each becomes an
            attribute.

    Attributes:
        activation: The scores that the loss compares, ``'softmax'`` or ``'sigmoid'``.

    Raises:
        ConfigError: A number is not finite or out of its range, or the subclass has no
            ``activation``.
    """

    activation: Literal['softmax', 'sigmoid']

    def __init__(
        self,
        loss_weight: float = 1.0,
        *,
        positive: Mapping[str, float] = MappingProxyType({}),
        non_negative: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        activation = getattr(self, 'activation', None)
        if activation not in ('softmax', 'sigmoid'):
            raise ConfigError(
                f"{type(self).__name__}.activation must be 'softmax' or 'sigmoid', but is "
                f'{activation!r}: set it in the class'
            )
        self.loss_weight = check_number(loss_weight, 'distillation.loss_weight', minimum_open=False)
        for name, value in positive.items():
            setattr(self, name, check_number(value, f'distillation.{name}'))
        for name, value in non_negative.items():
            setattr(self, name, check_number(value, f'distillation.{name}', minimum_open=False))

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

    def extra_repr(self) -> str:
        names = inspect.signature(type(self)).parameters
        return ', '.join(f'{name}={getattr(self, name)!r}' for name in names)
