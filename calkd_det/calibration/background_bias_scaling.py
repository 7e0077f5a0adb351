"""Temperature scaling of a softmax head with a bias of its background logit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from mmdet.registry import MODELS
from torch import Tensor

from calkd_det.calibration.calibrator import Calibrator, check_finite, read_calibration
from calkd_det.config import check_number
from calkd_det.errors import ConfigError

_KEY = 'teacher.calibrator'


@MODELS.register_module()
class BackgroundBiasScaling(Calibrator):
    """Calibrator that divides class logits by T and adds a bias to that of the background.

    The share of background among the RoIs depends on how they are drawn, and a bias follows it
    where a temperature cannot. The order of the foreground classes stays.

    Args:
        temperature: T, > 0.
        bias: Added to the last logit, that of the background, after the division.
        parameters: The path of a calibration file that holds both, instead of numbers. It is read
            by :meth:`prepare`.

    Raises:
        ConfigError: A number is not finite or out of range, both numbers and a file are given, or,
            when training starts, the file lacks them.

    Example:
        >>> BackgroundBiasScaling(temperature=2.0, bias=-1.0)(torch.tensor([[4.0, 2.0]]))
        tensor([[2., 0.]])
    """

    activation = 'softmax'
    field = 'background_bias_scaling'

    def __init__(
        self,
        temperature: float = 1.0,
        bias: float = 0.0,
        parameters: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.path: Path | None = None
        self.temperature: float | None = None
        self.bias: float | None = None
        if parameters is None:
            self._set(temperature, bias, _KEY)
            return
        if not isinstance(parameters, (str, Path)):
            raise ConfigError(
                f'{_KEY}.parameters must be the path of a calibration file, but is {parameters!r}'
            )
        if (temperature, bias) != (1.0, 0.0):
            raise ConfigError(
                f"{_KEY} has both numbers and the file of 'parameters', which holds them too: "
                'give one of them'
            )
        self.path = Path(parameters).expanduser()

    def prepare(self) -> None:
        if self.path is None:
            return
        content = read_calibration(self.path, self.field, f'{_KEY}.parameters')
        key = f"{_KEY}.parameters: '{self.field}' in '{self.path}'"
        if not isinstance(content, Mapping) or set(content) != {'temperature', 'bias'}:
            raise ConfigError(
                f'{key} must be an object with the keys temperature, bias, but is {content!r}'
            )
        self._set(content['temperature'], content['bias'], key)

    @torch.no_grad()
    def forward(self, logits: Tensor) -> Tensor:
        scaled = logits.float() / self.temperature
        return torch.cat([scaled[:, :-1], scaled[:, -1:] + self.bias], dim=1)

    def _set(self, temperature: float, bias: float, key: str) -> None:
        self.temperature = check_number(temperature, f'{key}.temperature')
        self.bias = check_finite(bias, f'{key}.bias')

    def extra_repr(self) -> str:
        start = '' if self.path is None else f"'{self.path}', "
        if self.temperature is None:
            return f'{start}not read yet'
        return f'{start}temperature={self.temperature:.4g}, bias={self.bias:.4g}'
