"""Base class of the losses of feature maps that have parts trained with the student."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import nn
from torch.func import functional_call

from calkd_det.errors import ConfigError
from calkd_det.losses.base import FeatureLoss


class LearntFeatureLoss(FeatureLoss):
    """A loss of feature maps with learnt parts, such as convolutions, for each level.

    mmengine builds the optimizer and wraps the model before any feature map is computed, so the
    parts are built with the loss. Numbers of channels and of levels are therefore arguments. They
    are compared with the feature maps when the teacher is loaded. A loss that is switched off has
    no parts.

    Args:
        loss_weight: See :class:`~calkd_det.losses.base.DistillationLoss`, as for ``positive`` and
            ``non_negative``.
        num_levels: The number of levels, from the finest, that are compared. None for all, where
            the loss has no parts.
        student_channels: The number of channels of the student's feature maps.
        teacher_channels: The number of channels of the teacher's feature maps.
        positive: See there.
        non_negative: See there.

    Attributes:
        levels: The parts of each level; empty where there are none.

    Raises:
        ConfigError: A number is not finite or out of its range.
    """

    def __init__(
        self,
        loss_weight: float,
        *,
        num_levels: int | None,
        student_channels: int,
        teacher_channels: int,
        positive: Mapping[str, float] = MappingProxyType({}),
        non_negative: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        super().__init__(
            loss_weight, num_levels=num_levels, positive=positive, non_negative=non_negative
        )
        self.student_channels = _check_channels(student_channels, 'student_channels')
        self.teacher_channels = _check_channels(teacher_channels, 'teacher_channels')
        self.levels = nn.ModuleList()
        if self.loss_weight == 0 or not self.has_parts():
            return
        if num_levels is None:
            raise ConfigError(
                f'distillation.num_levels: {type(self).__name__} has learnt parts for each level '
                'here, so it must be told the number of levels: an integer >= 1, e.g. 5 for all '
                "levels of RetinaNet's FPN, 3 for YOLOX and RTMDet"
            )
        self.levels.extend(self.build_level() for _ in range(num_levels))

    def has_parts(self) -> bool:
        """Return whether the loss needs learnt parts, given its arguments."""
        return True

    @abstractmethod
    def build_level(self) -> nn.Module:
        """Build the learnt parts of one level."""

    def call_level(self, index: int, *inputs: Any) -> Any:
        """Call the parts of a level with their parameters in float32, whatever their dtype."""
        level = self.levels[index]
        parameters = {name: value.float() for name, value in level.named_parameters()}
        return functional_call(level, parameters, inputs)

    def check_widths(
        self, student: Sequence[int], teacher: Sequence[int], key: str = 'distillation'
    ) -> None:
        """See :meth:`FeatureLoss.check_widths`. Numbers of levels are compared as well."""
        if not self.levels:
            super().check_widths(student, teacher, key)
            return
        if len(student) < len(self.levels):
            raise ConfigError(
                f'{key}.num_levels is {len(self.levels)}, but the student has feature maps of '
                f'{len(student)} levels: write {key}.num_levels={len(student)}'
            )
        found = {}
        for side, widths in (('student', student), ('teacher', teacher)):
            used = widths[: len(self.levels)]
            if len(set(used)) > 1:
                raise ConfigError(
                    f"{key}: {type(self).__name__} needs levels of one width, but the {side}'s "
                    f'have {", ".join(map(str, used))} channels: take a {side} whose neck gives '
                    'all levels the same out_channels, or a loss without learnt parts such as '
                    'PKDLoss'
                )
            found[f'{side}_channels'] = used[0]
        wrong = {name: width for name, width in found.items() if getattr(self, name) != width}
        if wrong:
            raise ConfigError(
                f'{key}: {type(self).__name__} is set to feature maps of {self.student_channels} '
                f'channels of the student and {self.teacher_channels} of the teacher, but they '
                f'have {found["student_channels"]} and {found["teacher_channels"]}: write '
                + ', '.join(f'{key}.{name}={width}' for name, width in wrong.items())
            )


def alignment(student_channels: int, teacher_channels: int, *, bias: bool = True) -> nn.Module:
    """Return a 1 x 1 convolution from the student's channels to the teacher's.

    Where the numbers are equal it is no convolution, but returns its input.
    """
    if student_channels == teacher_channels:
        return nn.Identity()
    return nn.Conv2d(student_channels, teacher_channels, kernel_size=1, bias=bias)


def _check_channels(value: Any, name: str) -> int:
    if type(value) is not int or value < 1:
        raise ConfigError(f'distillation.{name} must be an integer >= 1, but is {value!r}')
    return value
