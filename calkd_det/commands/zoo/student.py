"""Build a model of mmdet as a CalKD student, and find what knowledge a teacher can give it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from torch import nn
from torch.overrides import TorchFunctionMode

from calkd_det.commands.zoo.configs import ZooConfig, class_name, describe_error
from calkd_det.errors import CalKDError, ConfigError
from calkd_det.knowledge import KINDS, Kind
from calkd_det.taps import find_taps
from calkd_det.taps.refused import describe_heads, reason_against


@dataclass(frozen=True)
class Student:
    """What was found of a config's model.

    Attributes:
        config: The config.
        detector: The name of its class.
        head: The names of the classes of its heads, '' where it was not built.
        num_parameters: The number of its parameters, 0 where it was not built.
        refused: Why it learns no knowledge of a kind, by that kind; empty where it was not built.
        refused_class: Why its class has no distilled counterpart, '' where it has.
        unreadable: Why mmdet cannot build it here, '' where it can.
        fault: What CalKD-Det raised where mmdet builds the model and no reason was given.
    """

    config: ZooConfig
    detector: str
    head: str = ''
    num_parameters: int = 0
    refused: dict[Kind, str] = field(default_factory=dict)
    refused_class: str = ''
    unreadable: str = ''
    fault: str = ''

    def of(self, config: ZooConfig) -> Student:
        """Return the same of another config with an equal model."""
        return replace(self, config=config)

    def learns(self, kind: Kind) -> bool:
        """Whether a teacher can give it knowledge of a kind."""
        return bool(self.head) and kind not in self.refused


def examine_config(config: ZooConfig) -> Student:
    """Build a config's model as a student, without weights, and ask for each kind of knowledge."""
    if config.model is None:
        return Student(config, '', unreadable=config.error)
    detector = class_name(config.model)
    try:
        student = build_without_weights(student_config(config.model))
        refused = {kind: reason for kind in KINDS if (reason := reason_against_kind(student, kind))}
    except CalKDError as error:
        reason = str(error).partition('cannot be built: ')[2] or str(error)
        return Student(config, detector, refused_class=reason)
    # mmdet raises anything where a package lacks; any other error is a fault of this project.
    except Exception as error:
        try:
            build_without_weights(config.model)
        except Exception as plain_error:
            return Student(config, detector, unreadable=describe_error(plain_error))
        return Student(config, detector, fault=describe_error(error))
    count = sum(parameter.numel() for parameter in student.parameters())
    return Student(config, detector, describe_heads(student), count, refused)


def student_config(model: ConfigDict) -> ConfigDict:
    """Return a model's config with the distilled counterpart of its class, and without teacher."""
    cfg = copy.deepcopy(model)
    cfg.type = f'CalKD{class_name(model)}'
    cfg.update(teacher=None, distillation=None)
    return cfg


def build_without_weights(cfg: ConfigDict) -> nn.Module:
    """Build a detector whose weights have shapes, but no memory and no values."""
    with _WithoutMemory():
        return MODELS.build(copy.deepcopy(cfg))


class _WithoutMemory(TorchFunctionMode):
    """Let torch's layers make their weights on the meta device.

    ``torch.device('meta')`` would put all tensors there, also those that backbones compute with
    while they are built.
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        return func(*args, **({**kwargs, 'device': 'meta'} if func is torch.empty else kwargs))


def reason_against_kind(student: nn.Module, kind: Kind) -> str:
    """Return why a student learns no knowledge of a kind; '' where it does."""
    try:
        find_taps(student, frozenset({kind}), 'model')
    except ConfigError as error:
        if kind == 'features':
            return str(error)
        if kind == 'box' and not reason_against_kind(student, 'class'):
            return 'its classes are read, but not its boxes'
        return reason_against(student) or str(error)
    return ''
