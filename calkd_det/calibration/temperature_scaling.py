"""Temperature scaling, the default calibrator of a teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmdet.registry import MODELS
from torch import Tensor, nn

from calkd_det.config import check_number
from calkd_det.errors import ConfigError

_KEY = 'teacher.calibrator.temperature'
SCHEMA_VERSION = 1


class Calibrator(nn.Module):
    """Base class of calibrators, which map class logits to float32 logits of the same shape."""

    def prepare(self) -> None:
        """Read what :meth:`forward` needs from disk. Called once, when training starts."""

    def forward(self, logits: Tensor) -> Tensor:
        raise NotImplementedError


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
    """Read ``temperature`` from a calibration file; errors as in :func:`read_calibration`.

    Raises:
        ConfigError: Also where it is not a finite number > 0.
    """
    value = read_calibration(path, 'temperature', _KEY)
    return check_number(value, f"{_KEY}: 'temperature' in '{path}'")


def read_calibration(path: Path, field: str, key: str) -> Any:
    """Read one field of a calibration file.

    Args:
        path: A JSON object with ``field`` and, optionally, ``schema_version``.
        field: What to read.
        key: The config key that named the file, for error messages.

    Raises:
        ConfigError: The file is missing, no JSON object, of a later schema, or lacks the field.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise ConfigError(
            f"{key}: there is no file '{path}' (from {Path.cwd()}); "
            'give the value itself, or the path of a calibration file'
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{key}: cannot read '{path}' as JSON: {error}") from error
    if not isinstance(content, dict) or field not in content:
        raise ConfigError(f"{key}: '{path}' holds no object with the key '{field}'")
    version = content.get('schema_version', SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"{key}: '{path}' has schema_version {version!r}, this CalKD-Det reads "
            f'{SCHEMA_VERSION}: upgrade it, or write the file again'
        )
    return content[field]
