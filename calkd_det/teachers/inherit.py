"""Start parts of the student from the teacher's weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from calkd_det.errors import ConfigError, did_you_mean

KEY = 'model.teacher.inherit'
_EXAMPLE = "['neck', 'roi_head.bbox_head']"


def check_inherit(parts: Any) -> tuple[str, ...]:
    """Check the value of ``teacher.inherit`` as far as possible without a detector.

    Args:
        parts: Dotted names of parts of a detector; None for none.

    Returns:
        The names.

    Raises:
        ConfigError: ``parts`` is no list of names, or names a part twice.
    """
    if parts is None:
        return ()
    if not isinstance(parts, (list, tuple)) or not all(
        isinstance(part, str) and part for part in parts
    ):
        raise ConfigError(
            f'{KEY} must be a list of dotted names of parts of the detector, e.g. {_EXAMPLE}, or '
            f'None, but is {parts!r}'
        )
    for part in parts:
        if [other for other in parts if f'{part}.'.startswith(f'{other}.')] != [part]:
            raise ConfigError(f'{KEY} names {part!r} twice, itself or by a part that holds it')
    return tuple(parts)


@torch.no_grad()
def inherit_weights(
    student: nn.Module,
    teacher: nn.Module,
    parts: Sequence[str],
    teacher_model: ConfigDict,
    same_classes: bool,
) -> None:
    """Copy the teacher's weights to parts of the student, in place.

    A tensor is taken where the student's has the same name and shape. The log names the others.
    The state of torch's random number generator is kept.

    Args:
        student: The student with its initial weights.
        teacher: The teacher with its weights, before any part of it is removed or folded.
        parts: Dotted names of modules of both.
        teacher_model: The config of the teacher's detector.
        same_classes: Whether both have the same classes in the same order. Where they do not,
            tensors with values for each class are not taken.

    Raises:
        ConfigError: A detector has no such part, or no tensor of a part fits.
    """
    if not parts:
        return
    of_classes = frozenset() if same_classes else _tensors_of_classes(teacher, teacher_model)
    own, theirs = student.state_dict(), teacher.state_dict()
    for part in parts:
        for detector, who in ((student, 'the student'), (teacher, 'the teacher')):
            names = [name for name, _ in detector.named_modules() if name]
            if part not in names:
                raise ConfigError(f'{KEY}: {who} has no part {part!r}; {_nearest(part, names)}')
        _inherit_part(part, own, theirs, of_classes)


def _tensors_of_classes(detector: nn.Module, model: ConfigDict) -> frozenset[str]:
    """Return the names of a detector's tensors whose shape depends on the number of classes.

    Raises:
        ConfigError: Its config does not say the number of classes.
    """
    cfg = copy.deepcopy(model)
    _add_class(cfg)
    with torch.random.fork_rng(devices=[]), DefaultScope.overwrite_default_scope('mmdet'):
        larger = MODELS.build(cfg).state_dict()
    names = [
        name
        for name, tensor in detector.state_dict().items()
        if name not in larger or larger[name].shape != tensor.shape
    ]
    if not names and any(getattr(part, 'num_classes', 1) > 1 for part in detector.modules()):
        raise ConfigError(
            f'{KEY}: the teacher has other classes than the student, and its config has no '
            'num_classes, so it cannot be told which of its weights belong to classes; write '
            'num_classes into the heads of model.teacher.config'
        )
    return frozenset(names)


def _inherit_part(
    part: str, own: dict[str, Tensor], theirs: dict[str, Tensor], of_classes: frozenset[str]
) -> None:
    names = [name for name in own if name.startswith(f'{part}.')]
    unlike = [n for n in names if n not in theirs or theirs[n].shape != own[n].shape]
    other_classes = [name for name in names if name in of_classes and name not in unlike]
    taken = [name for name in names if name not in {*unlike, *other_classes}]
    if not taken:
        raise ConfigError(
            f'{KEY}: no tensor of {part!r} can be taken from the teacher, '
            f'{_list_left(part, unlike, other_classes) or "since the part has none"}. Take it out '
            'of the list'
        )
    for name in taken:
        own[name].copy_(theirs[name])
    left = _list_left(part, unlike, other_classes)
    print_log(
        f'{KEY}: {part} starts from the teacher with {len(taken)} of {len(names)} tensors'
        f'{left and f", {left}"}. A checkpoint of load_from or resume replaces them.',
        logger='current',
    )


def _list_left(part: str, unlike: Sequence[str], other_classes: Sequence[str]) -> str:
    """Return a clause on the tensors that are not taken; '' where there are none."""
    groups = (
        (unlike, 'the teacher has no tensor of this name and shape'),
        (other_classes, 'the teacher has other classes or another order of them'),
    )
    clauses = [
        f'without {", ".join(name.removeprefix(f"{part}.") for name in names)} ({reason})'
        for names, reason in groups
        if names
    ]
    return ' and '.join(clauses)


def _nearest(part: str, names: Sequence[str]) -> str:
    """Return a hint at the nearest part, or at the children of the detector."""
    hint = did_you_mean(part, names)
    children = [name for name in names if '.' not in name]
    return hint if hint.startswith('did') else did_you_mean(part, children)


def _add_class(cfg: Any) -> None:
    """Add one to the number of classes everywhere in a model's config, in place."""
    if isinstance(cfg, (list, tuple)):
        for item in cfg:
            _add_class(item)
    elif isinstance(cfg, dict):
        for key, value in cfg.items():
            if key == 'num_classes' and isinstance(value, int):
                cfg[key] = value + 1
            else:
                _add_class(value)
