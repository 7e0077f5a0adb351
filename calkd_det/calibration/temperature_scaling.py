"""Temperature scaling, the default calibrator of a teacher."""

from __future__ import annotations

from pathlib import Path

from mmdet.registry import MODELS
from torch import Tensor

from calkd_det.calibration.calibrator import Calibrator, read_calibration
from calkd_det.config import check_number

_KEY = 'teacher.calibrator.temperature'


@MODELS.register_module()
class TemperatureScaling(Calibrator):
    """Calibrator that divides class logits by a temperature T.

    T > 1 lowers the confidence, T < 1 raises it, the ranking of classes stays. (Guo et al.,
    `On Calibration of Modern Neural Networks <https://arxiv.org/abs/1706.04599>`_, section 4.2;
    applied to the teacher before distillation: Kim et al., `The Role of Teacher Calibration in
    Knowledge Distillation <https://arxiv.org/abs/2508.20224>`_.)

    Args:
        temperature: T, > 0; or the path of a JSON file that holds a fitted one under
            ``temperature``. A file is read by :meth:`prepare`, so that a detector can be built
            and tested where the file is not.

    Raises:
        ConfigError: T is not a finite number > 0, or neither a number nor a path.

    Example:
        >>> import torch
        >>> TemperatureScaling(2.0)(torch.tensor([[2.0, -4.0]]))
        tensor([[ 1., -2.]])
    """

    def __init__(self, temperature: float | str | Path = 1.5) -> None:
        super().__init__()
        self.path: Path | None = None
        self._temperature: float | None = None
        if isinstance(temperature, (str, Path)):
            self.path = Path(temperature).expanduser()
        else:
            self._temperature = check_number(
                temperature, _KEY, hint='or the path of a JSON file that holds one'
            )

    @property
    def temperature(self) -> float:
        """The temperature T. Where the config names a file, the first access reads it."""
        if self._temperature is None:
            self._temperature = read_temperature(self.path)
        return self._temperature

    def prepare(self) -> None:
        self.temperature  # noqa: B018  reading it is the preparation

    def forward(self, logits: Tensor) -> Tensor:
        return logits.float() / self.temperature

    def extra_repr(self) -> str:
        if self.path is None:
            return f'temperature={self._temperature}'
        value = 'not read yet' if self._temperature is None else f'{self._temperature:.4g}'
        return f"temperature='{self.path}': {value}"


def read_temperature(path: Path) -> float:
    """Read ``temperature`` from a calibration file.

    Raises:
        ConfigError: As in :func:`~calkd_det.calibration.calibrator.read_calibration`, and where it
            is not a finite number > 0.
    """
    value = read_calibration(path, 'temperature', _KEY)
    return check_number(value, f"{_KEY}: 'temperature' in '{path}'")
