"""The doctor's evidence: samples of images, judged after calibration and class map."""

from __future__ import annotations

from types import SimpleNamespace

import helpers
import pytest
import torch
from torch import Tensor, nn

from calkd_det.commands.doctor.evidence import check_evidence, judge_samples
from calkd_det.measurement.collect import SampleStore
from calkd_det.taps import HeadSamples
from calkd_det.teachers.class_map import ClassMap

NUM_CLASSES = 3


class Network(nn.Module):
    """What is needed of a teacher's network."""

    def __init__(self, class_map: nn.Module | None) -> None:
        super().__init__()
        self.class_map = class_map
        self.weight = nn.Parameter(torch.ones(1))

    def calibrate(self, logits: Tensor) -> Tensor:
        logits = logits / 1.5
        return logits if self.class_map is None else self.class_map(logits)


def store_of(names: list[int], labels_of: list[int], activation: str, images: int) -> SampleStore:
    """Samples of a teacher of as many classes as ``names`` has; background is predicted as such.

    Args:
        names: For each class of the teacher the column that its objects excite.
        labels_of: The teacher's classes that the images hold.
        activation: Of the teacher's head.
        images: Number of images, with four objects of three samples each.
    """
    generator = torch.Generator().manual_seed(0)
    store = SampleStore()
    size = len(names) + 1
    for image in range(images):
        labels = torch.tensor(labels_of)[
            torch.randint(0, len(labels_of), (4,), generator=generator)
        ].repeat(3)
        labels = torch.cat([labels, torch.full((20,), size - 1)])
        columns = torch.tensor([*names, size - 1])[labels]
        logits = 8 * torch.eye(size)[columns] - 5
        samples = HeadSamples(
            logits=logits if activation == 'softmax' else logits[:, :-1],
            labels=labels,
            weights=torch.ones(len(labels)),
            locations=torch.zeros(len(labels), 5),
            activation=activation,
        )
        store.append(samples, torch.full((len(labels),), image))
    return store


def finding_of(
    store: SampleStore, columns: list[int] | None = None, num_teacher: int = NUM_CLASSES
) -> SimpleNamespace:
    class_map = columns and ClassMap(columns, num_teacher, store.activation)
    judgement = judge_samples(store, Network(class_map or None))
    (finding,) = check_evidence(judgement, helpers.CLASSES, 20)
    return finding


@pytest.mark.parametrize('activation', ['softmax', 'sigmoid'])
def test_a_good_teacher(activation: str) -> None:
    finding = finding_of(store_of([0, 1, 2], [0, 1, 2], activation, 20))
    assert (finding.mark, finding.title) == ('ok', 'evidence')
    assert finding.text.startswith('it predicts 1.00 of the foreground samples')


@pytest.mark.parametrize('activation', ['softmax', 'sigmoid'])
def test_exchanged_names(activation: str) -> None:
    finding = finding_of(store_of([1, 0, 2], [0, 1, 2], activation, 20))
    assert finding.mark == 'error'
    assert "'cat' looks like 'dog' (100 %), 'dog' looks like 'cat' (100 %). " in finding.text
    assert finding.text.endswith('Do not distil before that is clear')


@pytest.mark.parametrize('activation', ['softmax', 'sigmoid'])
def test_a_blind_teacher(activation: str) -> None:
    finding = finding_of(store_of([2, 2, 2], [0, 1, 2], activation, 40))
    assert finding.mark == 'error'
    assert 'looks blind' in finding.text
    assert finding.text.endswith('Do not distil before that is clear')


@pytest.mark.parametrize('activation', ['softmax', 'sigmoid'])
def test_a_teacher_of_more_classes_in_another_order(activation: str) -> None:
    # bird, horse, cat, dog; the images hold no horse.
    good = store_of([0, 1, 2, 3], [0, 2, 3], activation, 20)
    assert finding_of(good, [2, 3, 0], 4).mark == 'ok'
    # cats look like dogs, dogs like birds, birds like cats
    wrong = store_of([2, 1, 3, 0], [0, 2, 3], activation, 20)
    finding = finding_of(wrong, [2, 3, 0], 4)
    assert finding.mark == 'error'
    for pair in "'cat' looks like 'dog'", "'dog' looks like 'bird'", "'bird' looks like 'cat'":
        assert pair in finding.text


@pytest.mark.parametrize('images', [0, 2])
def test_too_few_objects_to_tell(images: int) -> None:
    finding = finding_of(store_of([1, 0, 2], [0, 1, 2], 'softmax', images))
    assert finding.mark == 'warning'
    assert 'look at more with --images' in finding.text
