"""What the log tells of the teacher: of the foreground alone, whatever the head."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from calkd_det.detectors.diagnosis import diagnose, predict
from calkd_det.taps import HeadSamples

NUM_CLASSES = 2


def samples_of(logits: Tensor, labels: list[int], weights: list[float]) -> HeadSamples:
    return HeadSamples(
        logits=logits,
        labels=torch.tensor(labels),
        weights=torch.tensor(weights),
        locations=torch.zeros(len(labels), 5),
        activation='softmax' if logits.shape[1] > NUM_CLASSES else 'sigmoid',
    )


def one_hot(predictions: list[int], columns: int) -> Tensor:
    return 8 * torch.eye(columns)[predictions]


def test_softmax_counts_the_foreground_with_a_weight() -> None:
    teacher = one_hot([0, 1, 2, 2, 1], 3)
    student = one_hot([0, 0, 2, 2, 1], 3)
    # The fourth is background, the fifth has no weight.
    samples = samples_of(student, [0, 1, 1, 2, 1], [1, 1, 1, 1, 0])
    logs = {key: value.item() for key, value in diagnose(samples, teacher).items()}
    assert logs['teacher_accuracy'] == pytest.approx(2 / 3)
    assert logs['teacher_agreement'] == pytest.approx(2 / 3)
    assert logs['teacher_confidence'] == pytest.approx(teacher.softmax(1).max().item())


def test_a_sigmoid_teacher_that_scores_nothing_is_not_right() -> None:
    silent = torch.full((4, NUM_CLASSES), -4.6)  # as a dense head begins: a score of 0.01
    samples = samples_of(silent, [0, 0, 0, 2], [1, 1, 1, 1])
    logs = diagnose(samples, silent + torch.tensor([0.1, 0]))  # its highest class is the right one
    assert logs['teacher_accuracy'] == 0
    assert logs['teacher_agreement'] == 1  # both say that there is nothing
    assert logs['teacher_confidence'] == pytest.approx(torch.tensor(-4.5).sigmoid().item())
    assert diagnose(samples, silent + torch.tensor([4.6, 0]))['teacher_accuracy'] == 1


@pytest.mark.parametrize('score', [0.049, 0.051])
def test_the_score_of_no_object(score: float) -> None:
    logits = torch.tensor([[-9.0, torch.logit(torch.tensor(score)).item()]])
    assert predict(logits, 'sigmoid')[1].item() == (NUM_CLASSES if score < 0.05 else 1)


def test_without_foreground_all_is_zero() -> None:
    for labels, weights in ([], []), ([2, 0], [1, 0]):
        logits = torch.randn(len(labels), 3)
        samples = samples_of(logits, labels, weights)
        if not labels:
            samples = samples_of(logits, torch.zeros(0, dtype=torch.long).tolist(), [])
        assert all(value == 0 for value in diagnose(samples, logits).values())
