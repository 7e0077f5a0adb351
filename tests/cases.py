"""What the tests of all detectors are parametrised over: one case for each pair tried."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mmengine.config import ConfigDict


@dataclass(frozen=True)
class Case:
    """A student and its teacher, every size turned down.

    Attributes:
        name: For the test's id and the table in the docs, e.g. ``Cascade R-CNN``.
        student: The plain student's ``model`` dict.
        teacher: The teacher's ``model`` dict, wider than the student's.
        distillation: Config of the loss.
        teacher_options: Further keys of ``model.teacher``.
        batch_options: For ``helpers.batch``.
    """

    name: str
    student: ConfigDict
    teacher: ConfigDict
    distillation: dict[str, Any] = field(default_factory=lambda: dict(type='KDLoss'))
    teacher_options: dict[str, Any] = field(default_factory=dict)
    batch_options: dict[str, Any] = field(default_factory=dict)

    @property
    def detector(self) -> str:
        """Name of the distilled detector's class."""
        return f'CalKD{self.student.type}'
