"""Calibrators with one temperature for each class logit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from mmdet.registry import MODELS
from torch import Tensor

from calkd_det.calibration.calibrator import Calibrator, read_calibration
from calkd_det.config import check_number
from calkd_det.errors import ConfigError

_KEY = 'teacher.calibrator.temperatures'


@MODELS.register_module()
class ClassTemperatureScaling(Calibrator):
    """Calibrator that divides each class's log-probability by its own temperature T_k.

    The log-probabilities are the log-softmax of the logits, background included. So a constant
    that is added to all logits changes nothing, as it changes nothing for the softmax. Unlike one
    temperature for all it can change the ranking of classes. See
    :func:`~calkd_det.calibration.class_temperatures.fit_class_temperatures`.

    Args:
        temperatures: T_k > 0 for each of the teacher's K logits, in its order of classes,
            background last; or the path of a calibration file, read by :meth:`prepare`.

    Raises:
        ConfigError: Neither numbers > 0 nor a path; the file lacks them; or, when training
            starts, their number is not the teacher's number of logits.
    """

    activation = 'softmax'
    field = 'class_temperatures'

    def __init__(self, temperatures: Sequence[float] | str | Path) -> None:
        super().__init__()
        self.path = None
        self.register_buffer('temperatures', None, persistent=False)
        if isinstance(temperatures, (str, Path)):
            self.path = Path(temperatures).expanduser()
        else:
            self._set(temperatures, _KEY)

    def prepare(self) -> None:
        if self.path is not None:
            values = read_calibration(self.path, self.field, _KEY)
            self._set(values, f"{_KEY}: '{self.field}' in '{self.path}'")

    def forward(self, logits: Tensor) -> Tensor:
        if len(self.temperatures) != logits.shape[1]:
            raise ConfigError(
                f'{_KEY} has {len(self.temperatures)} temperatures, but the teacher has '
                f'{logits.shape[1]} logits, background included: it was fitted for another one'
            )
        return logits.float().log_softmax(dim=1) / self.temperatures.float()

    def _set(self, values: Sequence[float], key: str) -> None:
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise ConfigError(
                f'{key} must be a list of numbers or the path of a calibration file, '
                f'but is {values!r}'
            )
        numbers = [check_number(value, f'{key}[{index}]') for index, value in enumerate(values)]
        self.temperatures = torch.tensor(numbers)

    def extra_repr(self) -> str:
        return f'temperatures={self.temperatures.tolist() if self.path is None else str(self.path)}'


@MODELS.register_module()
class ForegroundBackgroundScaling(ClassTemperatureScaling):
    """Calibrator with one temperature for all foreground classes and one for the background.

    As :class:`ClassTemperatureScaling`, whose list it takes too; from a calibration file it reads
    ``foreground_background_temperatures``.
    """

    field = 'foreground_background_temperatures'
