"""Distilled counterparts of detector classes, made from mmdet's registry."""

from __future__ import annotations

import sys
from typing import TypeVar

from mmdet.models.detectors import BaseDetector
from mmdet.models.mot import BaseMOTModel
from mmdet.registry import MODELS

from calkd_det.detectors.distillation import DistillationMixin
from calkd_det.detectors.undistillable import (
    UndistillableDetector,
    reason_against_class,
    reason_against_signatures,
)
from calkd_det.errors import ConfigError

Detector = TypeVar('Detector', bound=type[BaseDetector])

PREFIX = 'CalKD'


def make_counterparts(module: str) -> dict[str, type]:
    """Make the distilled counterpart of each detector and tracker class that mmdet registers.

    A class that cannot be distilled gets a :class:`UndistillableDetector`. All are registered in
    mmdet's ``MODELS``.

    Args:
        module: The full name of the module whose attributes they become.

    Returns:
        The classes by their names, ``CalKD`` followed by the name in the registry.
    """
    counterparts = {
        PREFIX + name: _counterpart(cls, PREFIX + name, module)
        for name, cls in sorted(MODELS.module_dict.items())
        if isinstance(cls, type) and {BaseDetector, BaseMOTModel} & set(cls.__mro__)
    }
    for name, cls in counterparts.items():
        MODELS.register_module(name=name, module=cls)
    return counterparts


def register_distilled(detector: Detector) -> Detector:
    """Register the distilled counterpart of a detector class of one's own.

    It is ``CalKD`` followed by the name of the class, an attribute of the module of the class, and
    takes ``teacher`` and ``distillation`` besides the arguments of the class.

    Args:
        detector: A subclass of mmdet's ``BaseDetector`` whose ``loss`` takes a batch of images
            and their data samples.

    Returns:
        The class, so that this can be a decorator.

    Raises:
        ConfigError: ``detector`` is no class, cannot be distilled, or another class has the name
            of its counterpart.

    Example:
        >>> from mmdet.models import RetinaNet
        >>> from mmdet.registry import MODELS
        >>> @register_distilled
        ... @MODELS.register_module()
        ... class WideRetinaNet(RetinaNet):
        ...     pass
        >>> MODELS.get('CalKDWideRetinaNet').__name__
        'CalKDWideRetinaNet'
    """
    if not isinstance(detector, type):
        raise ConfigError(f'register_distilled is given a class, but {detector!r} is none')
    if issubclass(detector, (DistillationMixin, UndistillableDetector)):
        raise ConfigError(f'{detector.__name__} is a distilled detector already')
    reason = reason_against_class(detector) or reason_against_signatures(detector)
    if reason is not None:
        raise ConfigError(f'{detector.__name__} cannot be distilled: {reason}')
    name = PREFIX + detector.__name__
    module = sys.modules[detector.__module__]
    if name in MODELS.module_dict or hasattr(module, name):
        raise ConfigError(
            f'the name {name} is taken by another class: give {detector.__name__} another name'
        )
    counterpart = _counterpart(detector, name, detector.__module__)
    MODELS.register_module(name=name, module=counterpart)
    setattr(module, name, counterpart)
    return detector


def _counterpart(detector: type, name: str, module: str) -> type:
    """Return a class like ``class name(DistillationMixin, detector)`` written in a module."""
    reason = reason_against_class(detector)
    if reason is not None:
        doc = f"Refuse to be built, because mmdet's ``{detector.__name__}`` cannot be distilled."
        namespace = dict(__module__=module, __doc__=doc, reason=reason)
        return type(name, (UndistillableDetector,), namespace)
    doc = (
        f"mmdet's ``{detector.__name__}`` plus ``teacher`` and ``distillation``.\n\n"
        'See :class:`~calkd_det.detectors.DistillationMixin`.'
    )
    metaclass = type(detector)
    return metaclass(name, (DistillationMixin, detector), dict(__module__=module, __doc__=doc))
