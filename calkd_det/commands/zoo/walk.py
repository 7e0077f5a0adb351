"""Walk the configs of mmdet's package."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch.distributed as dist
from mmdet.utils import register_all_modules
from mmengine.logging import MMLogger

from calkd_det.commands.zoo.configs import iterate_configs
from calkd_det.commands.zoo.page import step_key
from calkd_det.commands.zoo.self_taught import teach_itself
from calkd_det.commands.zoo.student import Student, examine_config


def examine_zoo(pattern: str, tell: Callable[[str], None]) -> list[Student]:
    """Build the model of each config as a student, and find what it learns.

    Args:
        pattern: What the names of the configs match.
        tell: Is given the name of each config.

    Raises:
        ConfigError: No config matches.
    """
    register_all_modules(init_default_scope=True)
    students: list[Student] = []
    known: dict[str, Student] = {}
    with _process_group():
        for config in iterate_configs(pattern):
            tell(config.name)
            # Many configs differ in their schedule alone.
            key = config.name if config.model is None else str(config.model)
            if key not in known:
                known[key] = examine_config(config)
            students.append(known[key].of(config))
    return students


@contextmanager
def _process_group() -> Iterator[None]:
    """Have a process group of this process alone, which mmcv's synchronised BatchNorm asks for."""
    is_own = dist.is_available() and not dist.is_initialized()
    if is_own:
        dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        if is_own:
            dist.destroy_process_group()


def run_steps(students: Sequence[Student], tell: Callable[[str], None]) -> dict[tuple, str]:
    """Let one student of each pair of detector and heads be taught by itself.

    Args:
        students: What was found of the configs.
        tell: Is given what is run.

    Returns:
        How the step went, by :func:`~calkd_det.commands.zoo.page.step_key`.
    """
    smallest: dict[tuple, Student] = {}
    for student in sorted(students, key=lambda student: student.num_parameters):
        if student.head and step_key(student)[-1]:
            smallest.setdefault(step_key(student), student)
    steps = {}
    with _without_logging():
        for key, student in smallest.items():
            tell(f'a step of {student.config.name}')
            steps[key] = teach_itself(student.config.model, key[-1])
    return steps


@contextmanager
def _without_logging() -> Iterator[None]:
    """Leave out what each detector logs of its teacher, which mmengine writes to stdout."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
