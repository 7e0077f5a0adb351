"""Detector classes that cannot be distilled, with the reason."""

from __future__ import annotations

import inspect
from typing import Any

from mmdet.models.detectors import (
    BaseDetector,
    Detectron2Wrapper,
    KnowledgeDistillationSingleStageDetector,
    SemiBaseDetector,
)
from mmdet.models.mot import OCSORT, BaseMOTModel, ByteTrack
from torch import nn

from calkd_det.detectors.runner_data import calling_runner
from calkd_det.errors import ConfigError

_KEYS = ('teacher', 'distillation')
# Trackers whose loss is the loss of their detector.
_TRACKERS_BY_LOSS = (ByteTrack, OCSORT)


class UndistillableDetector:
    """Base class of the counterparts of classes that cannot be distilled.

    Attributes:
        reason: Why it cannot, as a clause for the user.

    Raises:
        ConfigError: Always, with the reason.
    """

    reason: str

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise ConfigError(f'model.type: {type(self).__name__} cannot be built: {self.reason}')


def reason_against_class(cls: type) -> str | None:
    """Return why a class cannot be distilled, as a clause for the user; None where it can.

    Args:
        cls: A class of detectors or of trackers, of mmdet or derived from one of mmdet.
    """
    name, bases = cls.__name__, cls.__mro__  # issubclass of abstract classes takes milliseconds
    if BaseMOTModel in bases:
        return _reason_against_tracker(cls)
    if BaseDetector not in bases:
        return f"{name} is no detector, it does not derive from mmdet's BaseDetector"
    if SemiBaseDetector in bases:
        return (
            f'{name} has a teacher of its own, a running average of its student, and trains on '
            'images without annotations'
        )
    if KnowledgeDistillationSingleStageDetector in bases:
        return (
            f'{name} is distilled by a teacher of its own; take the CalKD class of the detector '
            'that it distils'
        )
    if Detectron2Wrapper in bases:
        return f'{name} runs a detector of Detectron2, which has no heads of mmdet'
    if inspect.isabstract(cls):
        return f'{name} is an abstract class; take a class that derives from it'
    return None


def reason_against_signatures(cls: type) -> str | None:
    """Return why the arguments of a detector's methods do not fit; None where they do.

    Args:
        cls: A class for which :func:`reason_against_class` has no reason.
    """
    # A constructor with *args or **kwargs passes them to that of a base class.
    for base in cls.__mro__:
        taken = [key for key in _KEYS if key in inspect.signature(base.__init__).parameters]
        if taken:
            return f'its constructor has an argument {taken[0]!r} of its own'
    signature = inspect.signature(cls.loss)
    try:
        signature.bind('self', 'batch_inputs', 'batch_data_samples')
    except TypeError:
        return f'its loss takes {signature}, and not a batch of images and their data samples'
    return None


def check_no_own_teacher(detector: nn.Module) -> None:
    """Check that a detector that its own constructor has built has no part named as the mixin's.

    Raises:
        ConfigError: It has one.
    """
    for key in _KEYS:
        if hasattr(detector, key):
            raise ConfigError(
                f'model.type: {type(detector).__name__} cannot be distilled: it has an attribute '
                f'{key!r} of its own'
            )


def check_tracker(detector: nn.Module) -> None:
    """Check that the model of the calling Runner calls the detector's loss.

    Raises:
        ConfigError: The detector is a part of a tracker that does not.
    """
    model = getattr(calling_runner(), 'model', None)
    model = getattr(model, 'module', model)  # of a wrapper for several processes
    if isinstance(model, BaseMOTModel) and not isinstance(model, _TRACKERS_BY_LOSS):
        raise ConfigError(
            f'model.detector: {type(detector).__name__} cannot be distilled here: '
            f'{_reason_against_tracker(type(model))}'
        )


def _reason_against_tracker(cls: type) -> str:
    if any(base in cls.__mro__ for base in _TRACKERS_BY_LOSS):
        return (
            f'{cls.__name__} is a tracker, and its loss is that of its detector; distil that, '
            "model=dict(detector=dict(type='CalKD...', teacher=..., distillation=...))"
        )
    return (
        f"{cls.__name__} is a tracker that does not call its detector's loss, to which "
        'distillation adds; train the detector by itself, with its CalKD class'
    )
