"""Assignment of the teacher's classifiers to the student's, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from calkd_det.errors import ConfigError

KEY = 'model.teacher.stages'


def check_stages(stages: Any) -> None:
    """Check the value of ``teacher.stages`` as far as possible without a detector.

    Raises:
        ConfigError: The value is neither None nor a list of integers >= 0.
    """
    if stages is None:
        return
    if not isinstance(stages, (list, tuple)) or not all(
        isinstance(stage, int) and not isinstance(stage, bool) and stage >= 0 for stage in stages
    ):
        raise ConfigError(
            f'{KEY} must be a list with the number, from 0, of the teacher stage that teaches '
            f'each stage of the student, e.g. [0, 0, 0], or None, but is {stages!r}'
        )


def match_stages(
    stages: Sequence[int] | None, student: Sequence[str], teacher: Sequence[str]
) -> dict[str, str]:
    """Find the teacher's classifier for each of the student's.

    Args:
        stages: For each of the student's classifiers the index of the teacher's classifier; None
            for the same index.
        student: Names of the student's classifiers.
        teacher: Names of the teacher's classifiers.

    Returns:
        The name of the teacher's classifier by the name of the student's.

    Raises:
        ConfigError: ``stages`` is None and the numbers of classifiers differ, or ``stages`` does
            not fit the numbers of classifiers.
    """
    count = f'the student has {_count(student)}, the teacher {_count(teacher)}'
    if stages is None:
        if len(student) != len(teacher):
            choice = [min(i, len(teacher) - 1) for i in range(len(student))]
            raise ConfigError(
                f'model.teacher: {count}. Say which of the teacher teaches each of the student: '
                f'teacher=dict(..., stages={choice})'
            )
        stages = range(len(student))
    if len(stages) != len(student) or max(stages) >= len(teacher):
        raise ConfigError(
            f'{KEY} must hold one number below {len(teacher)} for each stage of the student, but '
            f'is {list(stages)}; {count}'
        )
    return {name: teacher[stage] for name, stage in zip(student, stages)}


def _count(names: Sequence[str]) -> str:
    return f'{len(names)} stage{"s" * (len(names) != 1)} of classification'
