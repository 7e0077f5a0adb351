"""Match the teacher's classes to the student's by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from calkd_det.errors import ConfigError, did_you_mean
from calkd_det.taps import Activation


class ClassMap(nn.Module):
    """Map from class logits over the teacher's classes to logits over the student's.

    Classes that only the teacher has are background to the student. Under softmax their
    probability is added to the background's, by a logsumexp of their logits. Under sigmoid they
    are left out, because each class is scored by itself. The map is applied to calibrated logits,
    so that the temperature acts on the distribution it was fitted for.

    Args:
        columns: For each student class, its index among the teacher's classes.
        num_teacher_classes: Number of the teacher's foreground classes.
        activation: How the logits are turned into scores.

    Attributes:
        num_others: Number of classes that only the teacher has.
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

    @property
    def label_columns(self) -> Tensor:
        """For each student class, then the background, its index among the teacher's classes."""
        return torch.cat([self.columns, self.background[-1:]])

    def forward(self, logits: Tensor) -> Tensor:
        """Map logits of shape (N, C_teacher + 1) to (N, C_student + 1), background last.

        Under sigmoid, map (N, C_teacher) to (N, C_student).
        """
        if self.activation == 'sigmoid':
            return logits[:, self.columns]
        background = logits[:, self.background].logsumexp(dim=1, keepdim=True)
        return torch.cat([logits[:, self.columns], background], dim=1)


NAMES_KEY = 'model.teacher.class_names'


def check_class_names(names: Any) -> dict[str, str]:
    """Check the value of ``teacher.class_names`` as far as possible without a data set.

    Args:
        names: The teacher's names of classes by the student's names; None for no entry.

    Returns:
        The same as a plain dict.

    Raises:
        ConfigError: ``names`` is no dict of strings.
    """
    if names is None:
        return {}
    texts = isinstance(names, Mapping) and all(
        isinstance(name, str) for item in names.items() for name in item
    )
    if not texts:
        raise ConfigError(
            f"{NAMES_KEY} must be a dict from the student's names to the teacher's, e.g. "
            f"dict(aeroplane='airplane'), but is {names!r}"
        )
    return dict(names)


def match_classes(
    student: Sequence[str] | None,
    teacher: Sequence[str] | None,
    num_student: int,
    num_teacher: int,
    activation: Activation = 'softmax',
    class_names: Mapping[str, str] | None = None,
) -> ClassMap | None:
    """Find each student class among the teacher's, by name.

    Args:
        student: The student's class names, None if unknown.
        teacher: The teacher's class names, None if unknown.
        num_student: Number of classes of the student's head.
        num_teacher: Number of classes of the teacher's head.
        activation: How both heads turn class logits into scores.
        class_names: The teacher's names of classes by the student's names, where these differ.

    Returns:
        The map to apply to the teacher's logits; None where both have the same classes in the
        same order, or where names are unknown on one side and the numbers agree.

    Raises:
        ConfigError: The teacher lacks a student class, a head has another number of classes than
            names, a name appears twice, names are unknown and the numbers differ, or an entry of
            ``class_names`` names no class.
    """
    class_names = class_names or {}
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
        unknown = 'the student' if student is None else 'the teacher'
        if class_names:
            raise ConfigError(
                f'{NAMES_KEY} cannot be used: the class names of {unknown} are unknown. Give '
                'metainfo=dict(classes=...) in the data set of its config'
            )
        if num_student != num_teacher:
            raise ConfigError(
                f'model.teacher has {num_teacher} classes, the student {num_student}, and they '
                f'cannot be matched by name: the names of {unknown} are unknown. Give '
                'metainfo=dict(classes=...) in the data set of its config'
            )
        return None
    wanted = _rename(student, teacher, class_names)
    if wanted == list(teacher):
        return None
    index = {name: i for i, name in enumerate(teacher)}
    lacking = [name for name, meant in zip(student, wanted) if meant not in index]
    if lacking:
        raise ConfigError(
            f"model.teacher does not know {len(lacking)} of the student's classes: "
            f'{", ".join(lacking[:8])}{", ..." if len(lacking) > 8 else ""}. Every class of the '
            "student must be one of the teacher's, by name; the teacher knows "
            f'{", ".join(list(teacher)[:8])}{", ..." if len(teacher) > 8 else ""}. Where only the '
            f'spelling differs, write {NAMES_KEY}={{{lacking[0]!r}: ITS_NAME}}'
        )
    return ClassMap([index[name] for name in wanted], num_teacher, activation)


def have_same_classes(
    student: Sequence[str] | None,
    teacher: Sequence[str] | None,
    class_names: Mapping[str, str] | None = None,
) -> bool:
    """Return whether two detectors have the same classes in the same order.

    So they are taken to have where the names of one are unknown.

    Args:
        student: The student's class names, None if unknown.
        teacher: The teacher's class names, None if unknown.
        class_names: The teacher's names of classes by the student's names, where these differ.
    """
    if student is None or teacher is None:
        return True
    return [(class_names or {}).get(name, name) for name in student] == list(teacher)


def _rename(
    student: Sequence[str], teacher: Sequence[str], class_names: Mapping[str, str]
) -> list[str]:
    """Return the teacher's names of the student's classes."""
    for own, other in class_names.items():
        if own not in student:
            raise ConfigError(
                f'{NAMES_KEY}: the student has no class {own!r}; {did_you_mean(own, student)}'
            )
        if other not in teacher:
            raise ConfigError(
                f'{NAMES_KEY}[{own!r}]: the teacher has no class {other!r}; '
                f'{did_you_mean(other, teacher)}'
            )
    wanted = [class_names.get(name, name) for name in student]
    for other in class_names.values():
        both = [name for name, meant in zip(student, wanted) if meant == other]
        if len(both) > 1:
            raise ConfigError(
                f"{NAMES_KEY}: the student's classes {both[0]!r} and {both[1]!r} would both be "
                f"taught by the teacher's {other!r}: give each a class of its own"
            )
    return wanted
