"""Log that a student trains without a teacher."""

from __future__ import annotations

import logging

from mmengine.logging import print_log
from torch import nn

from calkd_det.detectors.runner_data import calling_runner

NOT_GIVEN = object()  # an argument that a config leaves out; None is a choice
_KEYS = ('teacher', 'distillation')


def tell_training_alone(detector: nn.Module, chosen: bool) -> None:
    """Log that a CalKD detector without distillation trains as the plain detector does.

    Args:
        detector: The student. The config of its Runner is searched for keys beside ``model``.
        chosen: Whether the config sets a key to None. This is logged as information. A key that
            is left out may have been forgotten, so it is logged as a warning.
    """
    if chosen:
        print_log(
            'model.teacher or model.distillation is None: no teacher is loaded, the student '
            'trains alone.',
            logger='current',
        )
        return
    print_log(
        f'{type(detector).__name__} has no {_missing(detector)}: no teacher is loaded, the student '
        f'trains alone, as the plain detector does. {_advice(detector)}',
        logger='current',
        level=logging.WARNING,
    )


def _missing(detector: nn.Module) -> str:
    if detector.teacher is None:
        return 'model.teacher and no model.distillation'
    return 'model.distillation'


def _advice(detector: nn.Module) -> str:
    cfg = getattr(calling_runner(), 'cfg', None) or {}
    beside = [key for key in _KEYS if cfg.get(key) is not None and not getattr(detector, key)]
    if beside:
        return (
            f'The config has {" and ".join(map(repr, beside))} beside model: they belong into it, '
            f'model=dict({", ".join(f"{key}=dict(...)" for key in beside)}).'
        )
    teacher = '' if detector.teacher else 'teacher=dict(config=..., checkpoint=...), '
    return (
        f"Write model=dict({teacher}distillation=dict(type='KDLoss')), with BinaryKDLoss for a "
        'sigmoid head, or distillation=None if the plain student is meant.'
    )
