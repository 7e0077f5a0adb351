"""The run looks at its teacher: counts, looks, warnings, and a real teacher under wrong names."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import coloured_shapes
import helpers
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calkd_det.detectors import evidence
from calkd_det.detectors.evidence import MAX_STEPS, TeacherEvidence, count_predictions
from calkd_det.taps import HeadSamples

NUM_CLASSES = 3
Answered = tuple[HeadSamples, Tensor]


class Student(nn.Module):
    def _class_names(self) -> tuple[str, ...]:
        return helpers.CLASSES


def answered(
    labels: Tensor, predictions: Tensor, activation: str, weights: Tensor | None = None
) -> Answered:
    """Samples of a classifier and a teacher that predicts the given classes."""
    logits = 8 * torch.eye(NUM_CLASSES + 1)[predictions] - 4
    if activation == 'sigmoid':
        logits = logits[:, :-1]
    samples = HeadSamples(
        logits=torch.zeros_like(logits),
        labels=labels,
        weights=torch.ones(len(labels)) if weights is None else weights,
        locations=torch.zeros(0),
        activation=activation,
    )
    return samples, logits


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(evidence, 'print_log', lambda text, **kwargs: lines.append(text))
    return lines


def run(
    names: list[int], steps: int, watch: TeacherEvidence, seed: int = 0, classes: int = NUM_CLASSES
) -> None:
    """Steps in which the teacher predicts class ``names[c]`` of class c, and all background."""
    generator = torch.Generator().manual_seed(seed)
    columns = torch.tensor([*names, NUM_CLASSES])
    for _ in range(steps):
        labels = torch.randint(0, classes, (20,), generator=generator)
        labels = torch.cat([labels, torch.full((40,), NUM_CLASSES)])
        watch.note(Student(), [answered(labels, columns[labels], 'softmax')])


@pytest.mark.parametrize('activation', ['softmax', 'sigmoid'])
def test_counts_are_those_of_a_loop(activation: str) -> None:
    generator = torch.Generator().manual_seed(0)
    groups, expected = [], np.zeros((NUM_CLASSES + 1, NUM_CLASSES + 1))
    for number in (50, 1, 30):  # the stages of a cascade
        labels, predictions = torch.randint(0, NUM_CLASSES + 1, (2, number), generator=generator)
        weights = torch.randint(0, 2, (number,), generator=generator).float()
        groups.append(answered(labels, predictions, activation, weights))
        for label, prediction, weight in zip(labels, predictions, weights):
            expected[label, prediction] += float(weight)
    assert expected.sum() > 20
    assert count_predictions(groups).tolist() == expected.tolist()


def test_no_sample_at_all() -> None:
    none = torch.zeros(0, dtype=torch.long)
    assert count_predictions([answered(none, none, 'softmax')]).sum() == 0


def test_right_names_are_not_told(told: list[str]) -> None:
    watch = TeacherEvidence()
    run([0, 1, 2], MAX_STEPS + 2, watch)
    assert told == []
    assert watch._units is None  # nothing is kept or counted after the last look


def test_exchanged_names_are_told_once(told: list[str]) -> None:
    watch = TeacherEvidence()
    run([1, 0, 2], 300, watch)
    assert len(told) == 1
    assert "'cat' looks like 'dog' (100 %), 'dog' looks like 'cat' (100 %). " in told[0]
    assert "'bird'" not in told[0]
    assert 'Judged by 320 foreground samples of the first 16 steps' in told[0]


def test_classes_that_come_late_are_told_at_the_last_look(told: list[str]) -> None:
    watch = TeacherEvidence()
    run([1, 2, 0], 2000, watch, classes=2)
    run([1, 2, 0], MAX_STEPS - 2000, watch)
    assert len(told) == 2
    assert "'cat' looks like 'dog' (100 %), 'dog' looks like 'bird' (100 %). " in told[0]
    assert "'bird' looks like 'cat' (100 %). " in told[1]


def test_a_blind_teacher_is_told_once(told: list[str]) -> None:
    run([3, 3, 3], 300, TeacherEvidence())
    assert len(told) == 1
    assert told[0].startswith('The teacher looks blind: its accuracy on objects is 0.00')


def test_a_look_waits_for_foreground(told: list[str]) -> None:
    watch = TeacherEvidence()
    for _ in range(299):
        watch.note(Student(), [answered(torch.tensor([0]), torch.tensor([3]), 'softmax')])
    assert told == []
    for _ in range(256):
        watch.note(Student(), [answered(torch.tensor([0]), torch.tensor([3]), 'softmax')])
    assert len(told) == 1
    assert 'Judged by 512 foreground samples' in told[0]


def test_copies_begin_anew(told: list[str]) -> None:
    watch = TeacherEvidence()
    run([1, 0, 2], 20, watch)
    for copied in copy.deepcopy(watch), pickle.loads(pickle.dumps(watch)):
        assert copied._step == 0
        run([1, 0, 2], 20, copied)
    assert len(told) == 3


@pytest.mark.parametrize(
    ('epoch', 'expected'), [(50, [16, 32, 50]), (64, [16, 32, 64]), (3, [16, 32])]
)
def test_an_epoch_ends_it(epoch: int, expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    monkeypatch.setattr(evidence, 'training_loader', lambda: range(epoch))
    monkeypatch.setattr(TeacherEvidence, '_copy_counts', lambda self: steps.append(self._step))
    run([1, 0, 2], 200, TeacherEvidence())
    assert steps == expected


@pytest.fixture(scope='module')
def shapes_teacher(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Weights of a detector that has learnt the coloured shapes."""
    model = helpers.detector_config()
    model.backbone.norm_eval = False
    work_dir = tmp_path_factory.mktemp('shapes')
    coloured_shapes.train(model, work_dir, epochs=3)
    return torch.load(work_dir / 'epoch_3.pth')['state_dict']


@pytest.mark.slow
@pytest.mark.parametrize(
    ('names', 'expected'),
    [
        (('cat', 'dog', 'bird'), ()),
        (('dog', 'cat', 'bird'), ("'cat' looks like 'dog'", "'dog' looks like 'cat'")),
        (
            ('dog', 'bird', 'cat'),
            ("'cat' looks like 'dog'", "'dog' looks like 'bird'", "'bird' looks like 'cat'"),
        ),
    ],
)
def test_wrong_names_stored_with_a_trained_teacher(
    names: tuple[str, ...],
    expected: tuple[str, ...],
    shapes_teacher: dict,
    told: list[str],
    tmp_path: Path,
) -> None:
    meta = dict(dataset_meta=dict(classes=names))
    torch.save(dict(meta=meta, state_dict=shapes_teacher), tmp_path / 'teacher.pth')
    cfg = helpers.distilled_config(helpers.detector_config(), tmp_path / 'teacher.pth')
    coloured_shapes.train(cfg, tmp_path / 'work', epochs=1)
    assert len(told) == bool(expected)
    for sentence in expected:
        assert sentence in told[0]
    for name in set(helpers.CLASSES) - {text.split("'")[1] for text in expected}:
        assert not any(f"'{name}' looks like" in text for text in told)


@pytest.mark.slow
def test_images_normalised_twice(shapes_teacher: dict, told: list[str], tmp_path: Path) -> None:
    torch.save(dict(state_dict=shapes_teacher), tmp_path / 'teacher.pth')
    model = helpers.detector_config()
    preprocessor = model.data_preprocessor
    mean, std = preprocessor.mean, preprocessor.std
    preprocessor.update(
        mean=[m + m * s for m, s in zip(mean, std)], std=[s * s for s in std]
    )  # of what is normalised already
    cfg = helpers.distilled_config(model, tmp_path / 'teacher.pth')
    coloured_shapes.train(cfg, tmp_path / 'work', epochs=1)
    assert len(told) == 1
    assert told[0].startswith('The teacher looks blind: its accuracy on objects is 0.')
    assert 'normalised twice' in told[0]
