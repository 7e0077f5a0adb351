"""Whether a teacher is judged rightly: simulated teachers of which the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from calkd_det.detectors.judgement import (
    Judgement,
    classification_skill,
    describe_blind,
    describe_exchanged,
    find_exchanged,
    judge,
    units_of,
)

FIRST_LOOK = 16
IMAGES_PER_STEP = 2
OBJECTS_PER_IMAGE = 3
MIN_SAMPLES = 300


def priors(num_classes: int, imbalanced: bool) -> NDArray[np.float64]:
    values = np.arange(1, num_classes + 1) ** (-1.5 if imbalanced else 0.0)
    return values / values.sum()


def seeing(num_classes: int, accuracy: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """A teacher's predictions by class: what it misses is half background, half two siblings."""
    table = np.zeros((num_classes + 1, num_classes + 1))
    for label in range(num_classes):
        others = [other for other in range(num_classes) if other != label]
        siblings = rng.choice(others, size=min(2, len(others)), replace=False) if others else []
        table[label, label] = accuracy
        table[label, -1] = (1 - accuracy) * (0.5 if others else 1)
        for sibling in siblings:
            table[label, sibling] += (1 - accuracy) / 2 / len(siblings)
    table[-1, -1] = 0.9
    table[-1, :-1] = 0.1 / num_classes
    return table


def renamed(table: NDArray[np.float64], names: NDArray[np.int64]) -> NDArray[np.float64]:
    """The same teacher, whose class c is stored under the name of class ``names[c]``."""
    result = table.copy()
    result[:, names] = table[:, :-1]
    return result


def derangement(num_classes: int, rng: np.random.Generator) -> NDArray[np.int64]:
    while (names := rng.permutation(num_classes))[np.arange(num_classes) == names].size:
        pass
    return names


def constant(num_classes: int, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """A teacher that predicts the same of everything."""
    return np.tile(probabilities, (num_classes + 1, 1))


def looks_at(
    table: NDArray[np.float64], *, imbalanced: bool = False, seed: int = 0, steps: int = 256
) -> list[Judgement]:
    """Judge a teacher in a simulated run, after 16 steps, 32, 64 and so on.

    An image holds two classes at most, and all samples of an object are predicted alike, so that
    the samples are far from independent, as in a real run.
    """
    rng = np.random.default_rng(seed)
    size = len(table)
    prior = priors(size - 1, imbalanced)
    units = np.zeros((2, size, size))
    number, judgements = 0, []
    for step in range(steps):
        counts = np.zeros((size, size))
        for _ in range(IMAGES_PER_STEP):
            classes = rng.choice(size - 1, p=prior, size=2)
            for label in rng.choice(classes, size=1 + rng.poisson(OBJECTS_PER_IMAGE - 1)):
                counts[label, rng.choice(size, p=table[label])] += rng.integers(1, 12)
        counts[-1] = rng.multinomial(30, table[-1])
        units[step % 2] += units_of(counts)
        number += counts[:-1].sum()
        is_look = step + 1 >= FIRST_LOOK and (step + 1) & step == 0
        if is_look and number >= MIN_SAMPLES:
            judgements.append(judge(units))
    return judgements


@pytest.mark.parametrize('num_classes', [1, 3, 20, 80])
@pytest.mark.parametrize('accuracy', [0.9, 0.6, 0.4])
@pytest.mark.parametrize('imbalanced', [False, True])
def test_a_teacher_that_sees_is_never_warned_of(
    num_classes: int, accuracy: float, imbalanced: bool
) -> None:
    for seed in range(2):
        table = seeing(num_classes, accuracy, np.random.default_rng(seed))
        judgements = looks_at(table, imbalanced=imbalanced, seed=seed)
        assert len(judgements) >= 4
        assert not [each for each in judgements if each.suspicious]
        assert judgements[-1].sees
        assert judgements[-1].accuracy == pytest.approx(accuracy, abs=0.1)


@pytest.mark.parametrize('num_classes', [3, 20, 80])
@pytest.mark.parametrize('accuracy', [0.9, 0.6])
@pytest.mark.parametrize('imbalanced', [False, True])
@pytest.mark.parametrize('kind', ['all', 'shift'])
def test_permuted_names_are_named(
    num_classes: int, accuracy: float, imbalanced: bool, kind: str
) -> None:
    rng = np.random.default_rng(num_classes)
    labels = np.arange(num_classes)
    names = derangement(num_classes, rng) if kind == 'all' else (labels + 1) % num_classes
    table = renamed(seeing(num_classes, accuracy, rng), names)
    judgements = looks_at(table, imbalanced=imbalanced, seed=1)
    assert not any(each.blind for each in judgements)
    final = judgements[-1]
    assert all(names[label] == other for label, other in final.exchanged.items())
    assert len(final.exchanged) >= (3 if imbalanced else 0.8 * num_classes)
    assert final.accuracy < 0.2
    assert final.renamed_accuracy > final.accuracy + 0.2


@pytest.mark.parametrize('num_classes', [3, 20, 80])
@pytest.mark.parametrize('accuracy', [0.9, 0.6])
def test_a_swap_of_two_is_found_among_many(num_classes: int, accuracy: float) -> None:
    names = np.arange(num_classes)
    names[[0, 2]] = 2, 0
    table = renamed(seeing(num_classes, accuracy, np.random.default_rng(5)), names)
    rare = looks_at(table, seed=2, steps=256 if num_classes < 80 else 1024)
    frequent = looks_at(table, imbalanced=True, seed=2)
    for judgements in rare, frequent:
        assert judgements[-1].exchanged == {0: 2, 2: 0}
        assert not any(each.blind or each.exchanged.keys() - {0, 2} for each in judgements)


@pytest.mark.parametrize('num_classes', [1, 3, 20, 80])
@pytest.mark.parametrize('kind', ['random', 'constant', 'frequencies', 'nothing'])
def test_a_blind_teacher_is_told(num_classes: int, kind: str) -> None:
    nothing = np.eye(num_classes + 1)[-1]
    probabilities = {
        'random': np.r_[np.full(num_classes, 1 / num_classes), 0],
        'constant': np.eye(num_classes + 1)[0],
        'frequencies': 0.8 * np.r_[priors(num_classes, True), 0] + 0.2 * nothing,
        'nothing': nothing,
    }[kind]
    for imbalanced in (False, True):
        table = constant(num_classes, probabilities)
        judgements = looks_at(table, imbalanced=imbalanced, seed=3, steps=512)
        assert judgements[-1].blind
        assert not any(each.exchanged or each.sees for each in judgements)


def test_a_poor_teacher_under_wrong_names_is_told() -> None:
    # Too unsure for its classes to be named, and of no use as it is.
    table = renamed(seeing(3, 0.4, np.random.default_rng(0)), np.array([1, 2, 0]))
    final = looks_at(table, seed=4, steps=1024)[-1]
    assert final.suspicious
    assert not final.sees
    assert final.skill < 0.05
    assert final.renamed_skill > final.skill


def test_one_class_seen_of_many() -> None:
    units = np.zeros((2, 4, 4))
    units[:, 3, 3] = 50  # background is predicted as such
    units[:, 0, 0] = 50
    assert judge(units).sees
    units[:, 0] = 0, 50, 0, 0
    judgement = judge(units)
    assert judgement.exchanged == {0: 1}
    assert not judgement.sees
    units[:, 0] = units[:, 3] = 50, 0, 0, 0  # all is the same to it
    assert judge(units).blind
    units[:, 0] = 6, 44, 0, 0
    units[:, 3] = 0, 0, 0, 50
    assert not judge(units / 20).sees  # it finds objects; whether it knows them is not known


def test_too_little_says_nothing() -> None:
    rng = np.random.default_rng(0)
    for num_classes in (1, 3, 80):
        table = constant(num_classes, np.eye(num_classes + 1)[0])
        counts = np.zeros((2, num_classes + 1, num_classes + 1))
        assert not judge(counts).suspicious
        assert not judge(counts).sees
        counts[0, 0] = rng.multinomial(500, table[0])  # of one step
        assert not judge(np.stack([units_of(half) for half in counts])).suspicious


def test_a_confused_class_is_not_exchanged() -> None:
    # Trucks are taken for cars, cars are known; in a chain, too: vans for trucks.
    counts = np.zeros((3, 4))
    counts[0, 0] = counts[1, 0] = counts[2, 1] = 100
    assert find_exchanged(counts)[0] == {}
    counts[0] = 0, 100, 0, 0  # now cars for trucks: those two are exchanged, vans are not
    assert find_exchanged(counts)[0] == {0: 1, 1: 0}


def test_a_partner_that_was_not_met_needs_more() -> None:
    counts = np.zeros((3, 4))
    counts[0, 1] = 31
    assert find_exchanged(counts)[0] == {}
    counts[0, 1] = 32
    assert find_exchanged(counts) == ({0: 1}, (1.0,))


def test_skill_of_perfect_constant_and_partial() -> None:
    rows = np.eye(4)[:3]
    assert classification_skill(rows, np.arange(3)) == 1
    assert classification_skill(np.tile([0, 1.0, 0, 0], (3, 1)), np.arange(3)) == 0
    # Half of three classes found, the rest background: chance is 1/3 of 1/2.
    assert classification_skill(
        0.5 * rows + 0.5 * np.eye(4)[[3, 3, 3]], np.arange(3)
    ) == pytest.approx((0.5 - 1 / 6) / (1 - 1 / 6))


def test_the_sentences() -> None:
    names = [f'class_{i}' for i in range(12)]
    shifted = {label: (label + 1) % 12 for label in range(12)}
    judgement = Judgement(shifted, (0.955,) * 12, 0.02, 0.93, False, False, 0.0, 0.9)
    text = describe_exchanged(judgement, names)
    assert "'class_0' looks like 'class_1' (96 %), 'class_1' looks like 'class_2'" in text
    assert "'class_7' looks like 'class_8' (96 %), and 4 more. " in text
    assert '0.02 as named, 0.93 with these classes renamed' in text
    assert 'class 0 looks like class 1 (' in describe_exchanged(judgement, None)
    text = describe_blind(Judgement({}, (), 0.25, 0.25, True, False, -0.01, 0.06))
    assert (
        'accuracy on objects is 0.25, which is 0.00 beyond chance (1 is perfect), and 0.06 under'
        in text
    )
    assert 'normalised twice' in text
