"""A trained detector whose calibration is to be measured."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from mmengine.config import Config
from torch import nn

from calkd_det.errors import ConfigError
from calkd_det.taps import find_tap
from calkd_det.teachers.source import CONFIG_KEY, TeacherSource
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
