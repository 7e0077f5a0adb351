"""Base class of calibrators, and the file that they read fitted numbers from."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from calkd_det.config import check_number
from calkd_det.errors import ConfigError
from calkd_det.knowledge import Activation

SCHEMA_VERSION = 1

_FITTING = {
    'softmax': 'TemperatureScaling, BackgroundBiasScaling, ForegroundBackgroundScaling or '
    'ClassTemperatureScaling',
    'sigmoid': 'TemperatureScaling, PlattScaling or BetaScaling',
}


class Calibrator(nn.Module):
    """Base class of calibrators, which map class logits to float32 logits of the same shape.

    Attributes:
        activation: The activation of the heads that it is for; None for every head.
    """

    activation: ClassVar[Activation | None] = None

    def prepare(self) -> None:
        """Read what :meth:`forward` needs from disk. Called once, when training starts."""

    def check_head(self, activation: Activation) -> None:
        """Check that the calibrator is for heads of an activation.

        Raises:
            ConfigError: It is for heads of the other one.
        """
        if self.activation not in (None, activation):
            raise ConfigError(
                f'model.teacher.calibrator.type: {type(self).__name__} is for heads that classify '
                f'by {self.activation}, but the head of the teacher classifies by {activation}: '
                f'use {_FITTING[activation]}'
            )

    def forward(self, logits: Tensor) -> Tensor:
        raise NotImplementedError


def check_parameter(value: Any, key: str, *, at_least_zero: bool = False) -> Tensor:
    """Check a parameter of a calibrator: a number, or a list with one for each class.

    Args:
        value: What the config or the calibration file holds.
        key: Its key, for error messages.
        at_least_zero: Whether negative numbers are refused.

    Returns:
        float32, shape () or (C,).

    Raises:
        ConfigError: It is neither a finite number nor a list of such, or out of range.
    """
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value):
        entries = [(entry, f'{key}[{index}]') for index, entry in enumerate(value)]
        return torch.tensor([_check_entry(*entry, at_least_zero) for entry in entries])
    return torch.tensor(_check_entry(value, key, at_least_zero))


def check_finite(value: Any, key: str, *, hint: str = '') -> float:
    """Check that a config value is a finite number of either sign.

    Raises:
        ConfigError: It is not. The message has ``hint``, on what else the key takes.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise ConfigError(
            f'{key} must be a finite number{hint and f", {hint}"}, but is {value!r} '
            f'({type(value).__name__})'
        )
    return float(value)


def _check_entry(value: Any, key: str, at_least_zero: bool) -> float:
    hint = 'or a list with one for each class'
    if at_least_zero:
        return check_number(value, key, minimum_open=False, hint=hint)
    return check_finite(value, key, hint=hint)


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
