"""Calibrators of heads that classify by sigmoids: Platt scaling and beta calibration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor

from calkd_det.calibration.calibrator import Calibrator, check_parameter, read_calibration
from calkd_det.errors import ConfigError

_KEY = 'teacher.calibrator'


class SigmoidScaling(Calibrator):
    """Base class of calibrators of sigmoid scores with parameters for all classes or for each.

    Attributes:
        field: The key of a calibration file that holds the parameters. ``class_`` before it is
            the key of those with one for each class.
        slopes: The names of the parameters that must be >= 0, so that higher logits stay higher.
    """

    activation = 'sigmoid'
    field: ClassVar[str]
    slopes: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        values: Mapping[str, Any],
        defaults: Mapping[str, float],
        path: str | Path | None,
        per_class: bool,
    ) -> None:
        super().__init__()
        self.names = tuple(defaults)
        self.path: Path | None = None
        for name in self.names:
            self.register_buffer(name, None, persistent=False)
        if not isinstance(per_class, bool):
            raise ConfigError(f'{_KEY}.per_class must be True or False, but is {per_class!r}')
        if path is None:
            if per_class:
                raise ConfigError(
                    f'{_KEY}.per_class says what to read from the file of {_KEY}.parameters, which '
                    f'is not given: give the file, or a list for each of {", ".join(self.names)}'
                )
            self._set(values, _KEY)
            return
        if not isinstance(path, (str, Path)):
            raise ConfigError(
                f'{_KEY}.parameters must be the path of a calibration file, but is {path!r}'
            )
        given = [name for name in self.names if values[name] != defaults[name]]
        if given:
            raise ConfigError(
                f"{_KEY} has both {given[0]!r} and the file of 'parameters', which holds it too: "
                'give one of them'
            )
        self.path = Path(path).expanduser()
        self.file_field = f'class_{self.field}' if per_class else self.field

    def prepare(self) -> None:
        if self.path is None:
            return
        content = read_calibration(self.path, self.file_field, f'{_KEY}.parameters')
        key = f"{_KEY}.parameters: '{self.file_field}' in '{self.path}'"
        if not isinstance(content, Mapping) or set(content) != set(self.names):
            raise ConfigError(
                f'{key} must be an object with the keys {", ".join(self.names)}, but is {content!r}'
            )
        self._set(content, key)

    @torch.no_grad()
    def forward(self, logits: Tensor) -> Tensor:
        for name in self.names:
            parameter = getattr(self, name)
            if parameter.ndim and len(parameter) != logits.shape[1]:
                raise ConfigError(
                    f'{_KEY}.{name} has {len(parameter)} numbers, but the teacher has '
                    f'{logits.shape[1]} classes: it was fitted for another one'
                )
        return self.scale(logits.float())

    def scale(self, logits: Tensor) -> Tensor:
        """Return calibrated logits of float32 logits of shape (N, C)."""
        raise NotImplementedError

    def _set(self, values: Mapping[str, Any], key: str) -> None:
        for name in self.names:
            number = check_parameter(
                values[name], f'{key}.{name}', at_least_zero=name in self.slopes
            )
            setattr(self, name, number)

    def extra_repr(self) -> str:
        parts = [] if self.path is None else [f"'{self.path}'"]
        for name in self.names:
            parameter = getattr(self, name)
            if parameter is None:
                parts.append(f'{name} not read yet')
            elif parameter.ndim:
                low, high = (float(value) for value in parameter.aminmax())
                parts.append(f'{name} from {low:.4g} to {high:.4g}')
            else:
                parts.append(f'{name}={float(parameter):.4g}')
        return ', '.join(parts)


@MODELS.register_module()
class PlattScaling(SigmoidScaling):
    """Calibrator of sigmoid scores that maps a logit z to a · z + b.

    It is a temperature 1/a and a shift b. (Platt, `Probabilistic Outputs for Support Vector
    Machines`, 1999; class by class for detectors: Kuzucu et al., `On Calibration of Object
    Detectors <https://arxiv.org/abs/2405.20459>`_.)

    Args:
        a: Slope, >= 0; a number, or a list with one for each of the teacher's classes.
        b: Shift of the logit, a number or a list.
        parameters: The path of a calibration file that holds both, instead of numbers. It is read
            by :meth:`prepare`.
        per_class: Whether to read the parameters of each class from the file, not those of all.

    Raises:
        ConfigError: A parameter is not finite or out of range, both numbers and a file are given,
            or, when training starts, the file lacks them or the number of classes is another one.

    Example:
        >>> PlattScaling(a=0.5, b=-1.0)(torch.tensor([[2.0, -4.0]]))
        tensor([[ 0., -3.]])
    """

    field = 'platt_scaling'
    slopes = ('a',)

    def __init__(
        self,
        a: float | list[float] = 1.0,
        b: float | list[float] = 0.0,
        parameters: str | Path | None = None,
        per_class: bool = False,
    ) -> None:
        super().__init__(dict(a=a, b=b), dict(a=1.0, b=0.0), parameters, per_class)

    def scale(self, logits: Tensor) -> Tensor:
        return self.a * logits + self.b


@MODELS.register_module()
class BetaScaling(SigmoidScaling):
    """Calibrator of sigmoid scores that maps a score p to the logit a · ln p − b · ln(1 − p) + c.

    ``a`` rules small scores, of which the background has most, and ``b`` scores near 1. With
    ``a = b`` it is Platt scaling, with ``c = 0`` too temperature scaling. (Kull et al., `Beta
    calibration <https://proceedings.mlr.press/v54/kull17a.html>`_, 2017.)

    Args:
        a: Factor of ln p, >= 0; a number, or a list with one for each of the teacher's classes.
        b: Factor of −ln(1 − p), >= 0; a number or a list.
        c: Shift of the logit, a number or a list.
        parameters: The path of a calibration file that holds all three, instead of numbers. It is
            read by :meth:`prepare`.
        per_class: Whether to read the parameters of each class from the file, not those of all.

    Raises:
        ConfigError: A parameter is not finite or out of range, both numbers and a file are given,
            or, when training starts, the file lacks them or the number of classes is another one.

    Example:
        >>> BetaScaling(a=2.0, b=2.0, c=1.0)(torch.tensor([[0.0]]))
        tensor([[1.]])
    """

    field = 'beta_scaling'
    slopes = ('a', 'b')

    def __init__(
        self,
        a: float | list[float] = 1.0,
        b: float | list[float] = 1.0,
        c: float | list[float] = 0.0,
        parameters: str | Path | None = None,
        per_class: bool = False,
    ) -> None:
        super().__init__(dict(a=a, b=b, c=c), dict(a=1.0, b=1.0, c=0.0), parameters, per_class)

    def scale(self, logits: Tensor) -> Tensor:
        return self.a * F.logsigmoid(logits) - self.b * F.logsigmoid(-logits) + self.c
