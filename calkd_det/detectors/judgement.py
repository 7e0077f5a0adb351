"""Judge from counts whether a teacher sees the objects and names their classes right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

# With fewer units of a class nothing is concluded about its name.
MIN_UNITS = 9
# The least for a class whose partners in an exchange have too few units.
MIN_UNITS_ALONE = 32
# By how many standard errors a class must be predicted more often as another than as itself. The
# first value is not reached by accident by any of 80 classes. The second is enough where the
# classes as a whole look renamed.
MIN_Z_SCORE = 3.0
MIN_Z_SCORE_OF_RENAMED = 1.5
# Accuracy beyond chance. Below the first value a teacher counts as blind. Above the second, under
# the best renaming, it sees enough for its class names to be called wrong.
BLIND_SKILL = 0.1
SEEING_SKILL = 0.2
_MIN_UNITS_OF_HALF = 2
_SHOWN_CLASSES = 8

_BLIND_REASONS = (
    'images that are normalised twice, or in another way than the teacher was trained with '
    '(its data_preprocessor, a Normalize in the pipeline); class names in another order than the '
    'labels; images of another domain; an untrained or wrong model.teacher.checkpoint'
)


@dataclass(frozen=True)
class Judgement:
    """Result of judging a teacher's predictions.

    Attributes:
        exchanged: For each class whose name looks exchanged, the class that the teacher predicts
            for its objects; in ascending order.
        shares: For each class of ``exchanged`` the share of its samples so predicted, in [0, 1].
        accuracy: Share of the foreground predicted as its class, in [0, 1]; NaN without foreground.
        renamed_accuracy: The same with the classes of ``exchanged`` renamed.
        blind: Whether the accuracy is hardly above chance, under the given names and under any
            renaming.
        sees: Whether the accuracy is surely above chance under the given names.
        skill: Accuracy beyond chance, see :func:`classification_skill`; NaN where there are too
            few units.
        renamed_skill: The same under the best renaming, at least ``skill``.
    """

    exchanged: dict[int, int]
    shares: tuple[float, ...]
    accuracy: float
    renamed_accuracy: float
    blind: bool
    sees: bool
    skill: float
    renamed_skill: float

    @property
    def suspicious(self) -> bool:
        """Whether a user should look at the teacher before it is used."""
        return self.blind or bool(self.exchanged)


def units_of(counts: NDArray) -> NDArray[np.float64]:
    """Divide each row of counts by its sum. A row of zeros stays a row of zeros.

    Samples of one object, and objects of one image, tend to get the same prediction, so they are
    no independent evidence. Each step or image that holds a class counts as one unit of the class.

    Args:
        counts: Samples by assigned class and prediction, shape (..., C + 1, C + 1).
    """
    return counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1)


def judge(units: NDArray[np.float64]) -> Judgement:
    """Judge a teacher by its predictions on assigned samples.

    Args:
        units: Units by half, assigned class and prediction, float, shape (2, C + 1, C + 1). The
            last row is the background, the last column "no class". The halves are of different
            steps or images. A renaming that is found in one half is measured on the other,
            because the best renaming looks too good on the counts in which it was found.
    """
    total = units.sum(axis=0)
    foreground = total[:-1]
    number = foreground.sum()
    known = np.flatnonzero((units[:, :-1].sum(axis=2) >= _MIN_UNITS_OF_HALF).all(axis=0))
    if len(known) < 2:
        named, renamed = _detection_skills(total)
    else:
        named, renamed = _class_skills(units, known)
    by_name_is_far_below = (
        len(known) >= 2 and renamed.lower > SEEING_SKILL and named.value < renamed.value / 3
    )
    exchanged, shares = find_exchanged(
        foreground, MIN_Z_SCORE_OF_RENAMED if by_name_is_far_below else MIN_Z_SCORE
    )
    correct = np.trace(foreground)
    correct_renamed = correct + sum(
        foreground[label, other] - foreground[label, label] for label, other in exchanged.items()
    )
    return Judgement(
        exchanged=exchanged,
        shares=shares,
        accuracy=float(correct / number) if number else float('nan'),
        renamed_accuracy=float(correct_renamed / number) if number else float('nan'),
        blind=not exchanged and _is_blind(named, renamed),
        sees=not exchanged and named.lower > BLIND_SKILL,
        skill=named.value,
        renamed_skill=max(named.value, renamed.value),
    )


def find_exchanged(
    foreground: NDArray[np.float64], min_z_score: float = MIN_Z_SCORE
) -> tuple[dict[int, int], tuple[float, ...]]:
    """Find the classes that the teacher predicts under each other's names.

    The candidate of each class is its partner in the best one-to-one renaming. A class that is
    only confused with another is not exchanged, because the partner's own objects are still
    predicted as the partner. A class counts as exchanged if all of this is true: most of its
    predictions are its partner and hardly any is itself; the partner is not predicted on the
    partner's own objects; the class that is renamed to it is exchanged as well or has too few
    units.

    Args:
        foreground: Units by assigned class and prediction, shape (C, C + 1), "no class" last.
        min_z_score: By how many standard errors a class must be predicted more often as its
            partner than as itself.

    Returns:
        The partner of each exchanged class, and the share of the class's units predicted so.
    """
    classes = foreground[:, :-1]
    met = np.flatnonzero(classes.sum(axis=1) > 0)
    # Of renamings that are equally good, one that keeps names is taken.
    rows, columns = linear_sum_assignment(
        (classes + 1e-6 * np.eye(len(classes)))[met], maximize=True
    )
    partner = np.full(len(classes), -1)
    partner[met[rows]] = columns
    named = [
        label
        for label in range(len(classes))
        if _is_predicted_as(foreground[label], label, partner[label], min_z_score)
    ]
    source = {int(partner[c]): int(c) for c in met}
    number = classes.sum(axis=1)

    def is_predicted_as_itself(label: int) -> bool:
        return classes[label, label] > 0 and classes[label, label] >= classes[label].max() / 4

    exchanged = {}
    for label in named:
        other, before = int(partner[label]), source.get(label)
        unknown_before = before is None or number[before] < MIN_UNITS
        if is_predicted_as_itself(other) or not (before in named or unknown_before):
            continue
        if other in named or before in named or number[label] >= MIN_UNITS_ALONE:
            exchanged[label] = other
    shares = tuple(
        float(foreground[label, other] / foreground[label].sum())
        for label, other in exchanged.items()
    )
    return exchanged, shares


def _is_predicted_as(
    units: NDArray[np.float64], label: int, other: int, min_z_score: float
) -> bool:
    """Return whether a class is predicted significantly more often as another than as itself."""
    if other in (-1, label):
        return False
    own, moved = units[label], units[other]
    return bool(
        moved - own >= min_z_score * np.sqrt(moved + own)
        and own <= moved / 4
        and moved >= 0.3 * units[:-1].sum()
        and moved >= 0.2 * units.sum()
    )


def classification_skill(rows: NDArray[np.float64], columns: NDArray[np.int64]) -> float:
    """Return the accuracy beyond chance: 1 for a perfect teacher, 0 for a constant or random one.

    It is Cohen's kappa (1960) with equal weights of all classes, whatever their number of objects.

    Args:
        rows: Share of each prediction for S classes, shape (S, C + 1).
        columns: For each of the S classes the column that counts as correct, shape (S,).
    """
    accuracy = rows[np.arange(len(rows)), columns].mean()
    chance = rows.mean(axis=0)[columns].mean()
    return float((accuracy - chance) / (1 - chance)) if chance < 1 else 0.0


@dataclass(frozen=True)
class _Skill:
    """Skill with an interval of two standard errors."""

    value: float
    error: float

    @property
    def lower(self) -> float:
        return self.value - 2 * self.error

    @property
    def upper(self) -> float:
        return self.value + 2 * self.error


def _is_blind(named: _Skill, renamed: _Skill) -> bool:
    if named.upper >= BLIND_SKILL:
        return False
    # Where a renaming helps, the interval must show that it helps little.
    return renamed.upper < BLIND_SKILL or (
        renamed.error < BLIND_SKILL / 2 and renamed.lower < SEEING_SKILL
    )


def _class_skills(units: NDArray[np.float64], known: NDArray[np.int64]) -> tuple[_Skill, _Skill]:
    """Return the skill under the given names, and under the best renaming.

    Args:
        units: As for :func:`judge`.
        known: The classes that both halves have units of, at least two.
    """
    halves = [half / half.sum(axis=1, keepdims=True) for half in units[:, known]]
    both = units[:, known].sum(axis=0)
    number = both.sum(axis=1)
    renamings = [linear_sum_assignment(half[:, :-1], maximize=True)[1] for half in halves]
    return (
        _class_skill(number, [(both / number[:, None], known)]),
        _class_skill(number, [(halves[1], renamings[0]), (halves[0], renamings[1])]),
    )


def _class_skill(
    numbers: NDArray[np.float64], parts: Sequence[tuple[NDArray[np.float64], NDArray[np.int64]]]
) -> _Skill:
    skill = np.mean([classification_skill(rows, columns) for rows, columns in parts])
    index = np.arange(len(numbers))
    correct = np.mean([rows[index, columns] for rows, columns in parts], axis=0)
    chance = np.mean([rows.mean(axis=0)[columns].mean() for rows, columns in parts])
    error = np.sqrt(_variance(correct, numbers).sum()) / len(numbers) / max(1 - chance, 1e-6)
    return _Skill(float(skill), float(error))


def _detection_skills(total: NDArray[np.float64]) -> tuple[_Skill, _Skill]:
    """Return how much more often objects than background get their class, and any class.

    This takes the place of the skill where fewer than two classes have enough units.

    Args:
        total: Units by assigned class and prediction, shape (C + 1, C + 1).
    """
    foreground, background = total[:-1], total[-1]
    numbers = np.array([foreground.sum(), background.sum()])
    if numbers[0] < MIN_UNITS:
        return (_Skill(float('nan'), float('inf')),) * 2
    prior = foreground.sum(axis=1) / numbers[0]
    correct = np.trace(foreground), prior @ background[:-1]
    found = foreground[:, :-1].sum(), background[:-1].sum()
    # A head that is trained on the foreground alone has no background samples.
    compared = slice(0, 2 if numbers[1] >= MIN_UNITS else 1)
    skills = []
    for shares in np.array([correct, found]) / np.maximum(numbers, 1):
        variance = _variance(shares, np.maximum(numbers, 1))[compared].sum()
        skills.append(_Skill(float(shares[0] - shares[compared][1:].sum()), float(variance**0.5)))
    return skills[0], skills[1]


def _variance(share: NDArray[np.float64], number: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the variance of shares, smoothed so that it is above zero for a share of 0 or 1."""
    smooth = (share * number + 0.5) / (number + 1)
    return smooth * (1 - smooth) / number


def describe_exchanged(judgement: Judgement, class_names: Sequence[str] | None) -> str:
    """Return the message on exchanged classes, for log and doctor.

    Args:
        judgement: A judgement with exchanged classes.
        class_names: The student's, None if unknown.
    """
    pairs = [
        f'{_name(label, class_names)} looks like {_name(other, class_names)} ({100 * share:.0f} %)'
        for (label, other), share in zip(judgement.exchanged.items(), judgement.shares)
    ]
    more = len(pairs) - _SHOWN_CLASSES
    return (
        f"The teacher's class names look exchanged: {', '.join(pairs[:_SHOWN_CLASSES])}"
        f'{f", and {more} more" if more > 0 else ""}. Its accuracy on objects is '
        f'{judgement.accuracy:.2f} as named, {judgement.renamed_accuracy:.2f} with these classes '
        'renamed. The class names stored with model.teacher.checkpoint or in model.teacher.config, '
        "or those of the training data, are in another order than the labels: put the teacher's "
        'right'
    )


def describe_blind(judgement: Judgement) -> str:
    """Return the message on a blind teacher, for log and doctor."""
    return (
        f'The teacher looks blind: its accuracy on objects is {judgement.accuracy:.2f}, which is '
        f'{max(judgement.skill, 0):.2f} beyond chance (1 is perfect), and '
        f'{max(judgement.renamed_skill, 0):.2f} under the best renaming of its classes. The usual '
        f'reasons: {_BLIND_REASONS}'
    )


def _name(label: int, class_names: Sequence[str] | None) -> str:
    return f'class {label}' if class_names is None else repr(class_names[label])
