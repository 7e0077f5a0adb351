"""A trained detector whose calibration is to be measured."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from calkd_det.errors import CalKDError, ConfigError
from calkd_det.measurement.held_out import sha256_of
from calkd_det.taps import find_tap
from calkd_det.teachers.source import CHECKPOINT_KEY, CONFIG_KEY, TeacherSource
from calkd_det.teachers.whole_teacher import build_from_source


@dataclass(frozen=True)
class MeasuredDetector:
    """A detector with its weights.

    Attributes:
        detector: In eval mode.
        num_classes: Its number of foreground classes.
        classes: Their names, if the checkpoint has them.
    """

    detector: nn.Module
    num_classes: int
    classes: tuple[str, ...] | None


def build_measured_detector(
    cfg: Config, checkpoint: str, device: torch.device | str
) -> MeasuredDetector:
    """Build the detector of a config, a distilled one as the plain detector that it is.

    Args:
        cfg: The whole config. It is not changed.
        checkpoint: Path or URL of its weights.
        device: Where to put it.

    Raises:
        ConfigError: The config has no model, or its head cannot be read.
        TeacherError: mmdet cannot build it, or the weights do not fit.
    """
    if 'model' not in cfg:
        raise ConfigError(f"'{cfg.filename}' has no 'model'")
    model = copy.deepcopy(cfg.model)
    for key in ('teacher', 'distillation'):
        if key in model:
            model[key] = None
    whole = build_from_source(TeacherSource(model, checkpoint, classes=None))
    num_classes = find_tap(whole.detector, CONFIG_KEY).num_classes(whole.detector)
    return MeasuredDetector(whole.detector.to(device), num_classes, whole.classes)


@contextmanager
def errors_name_arguments() -> Iterator[None]:
    """Let errors of a teacher name a command's arguments, not the keys of a student's config."""
    try:
        yield
    except CalKDError as error:
        text = str(error).replace(CHECKPOINT_KEY, 'CHECKPOINT').replace(CONFIG_KEY, 'CONFIG')
        raise type(error)(text) from error


def describe_source(config: str, checkpoint: str) -> dict[str, Any]:
    """Return plain data on where a detector is from, for a report.

    Args:
        config: What the user named its config by.
        checkpoint: Path or URL of its weights.
    """
    path = Path(checkpoint)
    return {
        'config': config,
        'checkpoint': checkpoint,
        'checkpoint_sha256': sha256_of(path) if path.is_file() else None,
    }
