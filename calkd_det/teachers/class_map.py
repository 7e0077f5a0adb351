"""Matches the teacher's classes to the student's by name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from calkd_det.errors import ConfigError
from calkd_det.taps import Activation


class ClassMap(nn.Module):
    """Rearranges class logits over the teacher's classes into the student's.

    Classes that only the teacher knows are background to the student. Under softmax their
    probability joins the background's, by a logsumexp of their logits. It is applied to
    calibrated logits, so that the temperature acts on the distribution it was fitted for. Under
    sigmoid they are left out: each class is scored by itself.

    Args:
        columns: For each student class, its index among the teacher's classes.
        num_teacher_classes: Number of the teacher's foreground classes.
        activation: How the logits are turned into scores.

    Attributes:
        num_others: Number of classes that only the teacher knows.
    """

    def __init__(
        self,
        columns: Sequence[int],
        num_teacher_classes: int,
        activation: Activation = 'softmax',
    ) -> None:
        super().__init__()
        self.activation = activation
        others = sorted(set(range(num_teacher_classes)) - set(columns))
        self.num_others = len(others)
        background = [*others, num_teacher_classes]
        self.register_buffer('columns', torch.tensor(columns, dtype=torch.long))
        self.register_buffer('background', torch.tensor(background, dtype=torch.long))

    def forward(self, logits: Tensor) -> Tensor:
        """Maps logits of shape (N, C_teacher + 1) to (N, C_student + 1), background last.

        Under sigmoid (N, C_teacher) to (N, C_student).
        """
        if self.activation == 'sigmoid':
            return logits[:, self.columns]
        background = logits[:, self.background].logsumexp(dim=1, keepdim=True)
        return torch.cat([logits[:, self.columns], background], dim=1)


def match_classes(
    student: Sequence[str] | None,
    teacher: Sequence[str] | None,
    num_student: int,
    num_teacher: int,
    activation: Activation = 'softmax',
) -> ClassMap | None:
    """Finds each student class among the teacher's, by name.

    Args:
        student: The student's class names, None if nobody knows them.
        teacher: The teacher's class names, None if nobody knows them.
        num_student: Number of classes of the student's head.
        num_teacher: Number of classes of the teacher's head.
        activation: How both heads turn class logits into scores.

    Returns:
        The map to apply to the teacher's logits; None where both have the same classes in the
        same order, or where names are unknown on one side and the numbers agree.

    Raises:
        ConfigError: A student class that the teacher lacks, names that do not match the number
            of classes of a head, doubled names, or unknown names with differing numbers.
    """
    for names, number, who, where in (
        (student, num_student, 'student', 'the training data set'),
        (teacher, num_teacher, 'teacher', 'its checkpoint or config'),
    ):
        if names is None:
            continue
        if len(names) != number:
            raise ConfigError(
                f'the {who} has {number} classes (num_classes of its head), but {where} names '
                f'{len(names)}: set num_classes and metainfo=dict(classes=...) alike'
            )
        if len(set(names)) != len(names):
            raise ConfigError(f'the {who} has two classes of one name: {", ".join(names)}')
    if student is None or teacher is None:
        if num_student != num_teacher:
            raise ConfigError(
                f'model.teacher has {num_teacher} classes, the student {num_student}, and they '
                'cannot be matched by name: the names of '
                f'{"the student" if student is None else "the teacher"} are unknown. Give '
                'metainfo=dict(classes=...) in the data set of its config'
            )
        return None
    if tuple(student) == tuple(teacher):
        return None
    lacking = [name for name in student if name not in set(teacher)]
    if lacking:
        raise ConfigError(
            f"model.teacher does not know {len(lacking)} of the student's classes: "
            f'{", ".join(lacking[:8])}{", ..." if len(lacking) > 8 else ""}. Every class of the '
            "student must be one of the teacher's, by name; the teacher knows "
            f'{", ".join(list(teacher)[:8])}{", ..." if len(teacher) > 8 else ""}'
        )
    index = {name: i for i, name in enumerate(teacher)}
    return ClassMap([index[name] for name in student], num_teacher, activation)
