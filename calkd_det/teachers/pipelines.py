"""Find normalisation in data pipelines, which :class:`InputMap` does not undo."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from mmengine.logging import print_log
from torch import nn

Normalisation = tuple[tuple[float, ...], tuple[float, ...], bool]  # mean, std, to_rgb

_CONTAINERS = ('dataset', 'datasets', 'pipeline', 'transforms')


def warn_of_pipelines(
    student: nn.Module, teacher: nn.Module, student_dataset: Any, teacher_dataset: Any
) -> None:
    """Warn where the training pipelines of student and teacher normalise differently.

    On the student's images, the normalisation of the student's data preprocessor is undone and
    that of the teacher's is applied. Normalisation by a pipeline is not undone.

    Args:
        student: The student's detector.
        teacher: The teacher's detector.
        student_dataset: The data set that the student trains on, built or as a config; None if
            unknown.
        teacher_dataset: The same for the teacher.
    """
    of_student, of_teacher = normalisations(student_dataset), normalisations(teacher_dataset)
    # An unknown pipeline is assumed not to normalise where the preprocessor does.
    assumed_student = set() if of_student is None and _normalises(student) else of_student
    assumed_teacher = set() if of_teacher is None and _normalises(teacher) else of_teacher
    if None in (assumed_student, assumed_teacher) or assumed_student == assumed_teacher:
        return
    settings = '; '.join(
        f'{who}: {_format_settings(found)} in the pipeline, '
        f'{"mean and std" if _normalises(detector) else "none"} in data_preprocessor'
        for who, found, detector in (
            ('student', of_student, student),
            ('teacher', of_teacher, teacher),
        )
    )
    print_log(
        'Teacher and student do not normalise images in the same place, and CalKD-Det knows the '
        f'data_preprocessor alone ({settings}): the teacher is given images whose normalisation is '
        'not its own. Take Normalize out of the training pipeline and give its mean and std to '
        'model.data_preprocessor, or to the data_preprocessor of model.teacher.config.',
        logger='current',
        level=logging.WARNING,
    )


def normalisations(dataset: Any) -> set[Normalisation] | None:
    """Return the settings of each ``Normalize`` in the pipelines of a data set.

    Args:
        dataset: A data set or its config, with or without wrappers; None if unknown.

    Returns:
        The different settings, empty where no pipeline normalises; None if ``dataset`` is None.
    """
    return None if dataset is None else set(_iterate_settings(dataset))


def _iterate_settings(node: Any) -> Iterable[Normalisation]:
    if isinstance(node, Mapping):
        if _is_normalize(node.get('type')):
            yield _settings(node.get('mean'), node.get('std'), node.get('to_rgb', True))
        children: Iterable = node.values()
    elif isinstance(node, (list, tuple)):
        children = node
    elif _is_normalize(type(node)):
        yield _settings(node.mean, node.std, node.to_rgb)
        children = ()
    else:
        children = [getattr(node, name) for name in _CONTAINERS if hasattr(node, name)]
    for child in children:
        yield from _iterate_settings(child)


def _is_normalize(kind: Any) -> bool:
    name = kind.__name__ if isinstance(kind, type) else str(kind)
    return name.rpartition('.')[2] == 'Normalize'


def _settings(mean: Any, std: Any, to_rgb: Any) -> Normalisation:
    mean, std = (
        () if values is None else tuple(round(float(value), 4) for value in values)
        for values in (mean, std)
    )
    return mean, std, bool(to_rgb)


def _normalises(detector: nn.Module) -> bool:
    return bool(getattr(detector.data_preprocessor, '_enable_normalize', False))


def _format_settings(found: set[Normalisation] | None) -> str:
    if not found:
        return 'not known' if found is None else 'none'
    return ', '.join(
        f'mean {list(mean)}, std {list(std)}{" in RGB" if to_rgb else ""}'
        for mean, std, to_rgb in sorted(found)
    )
