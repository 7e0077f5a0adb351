"""Held-out errors of calibrators, and the choice between them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from calkd_det.calibration.choice import (
    Calibration,
    HeldOutErrors,
    cross_validate,
    image_folds,
    nll_excess,
    simplest_within_one_standard_error,
)
from calkd_det.calibration.scaling_fits import fit_global_temperature
from calkd_det.calibration.scores import brier_score, class_scores, negative_log_likelihood


def draw(activation: str, count: int = 600, seed: int = 0) -> tuple[Tensor, ...]:
    """Draw calibrated logits, labels, weights and images."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, 4, generator=generator)
    if activation == 'softmax':
        labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    else:
        labels = torch.randint(0, 5, (count,), generator=generator)
    weights = torch.rand(count, generator=generator) + 0.5
    return logits, labels, weights, torch.arange(count) // 5


def scaled_by(factor: float) -> Calibration:
    return lambda logits: logits * factor


@pytest.mark.parametrize('activation', ['softmax', 'sigmoid'])
def test_errors_are_those_of_all_samples(activation: str) -> None:
    """A calibrator that learns nothing has the errors that a direct computation gives."""
    logits, labels, weights, groups = draw(activation)
    (found,) = cross_validate(
        lambda *_: [scaled_by(0.5)], logits, labels, weights, groups, activation
    )
    options = dict(activation=activation, weights=weights)
    expected = negative_log_likelihood(logits, labels, temperature=2.0, **options)
    assert found.mean_nll == pytest.approx(expected, rel=1e-9)
    scores = class_scores(logits.double() / 2, activation)
    assert found.mean_brier == pytest.approx(brier_score(scores, labels, **options), rel=1e-6)
    num_classes = 3 if activation == 'softmax' else 4
    for threshold, gap in found.score_gap.items():
        total = score_sum = right = 0.0
        for row, label, weight in zip(scores, labels.tolist(), weights.tolist()):
            for column in range(num_classes):
                if row[column] >= threshold:
                    total += weight
                    score_sum += weight * float(row[column])
                    right += weight * (column == label)
        assert gap == pytest.approx((score_sum - right) / total, abs=1e-6)
    objects = labels < num_classes
    confidence, top = scores[objects].max(dim=1)
    w = weights[objects].double()
    expected = (w @ (confidence - (top == labels[objects]).double())) / w.sum()
    assert found.foreground_gap == pytest.approx(float(expected), abs=1e-6)
    first = negative_log_likelihood(
        logits[:5], labels[:5], temperature=2.0, activation=activation, weights=weights[:5]
    )
    assert float(found.nll[0] / found.weight[0]) == pytest.approx(first, rel=1e-6)


def test_nothing_is_measured_on_images_that_it_was_fitted_to() -> None:
    logits, labels, weights, groups = draw('softmax')
    fitted: list[set[int]] = []
    measured: list[set[int]] = []
    numbered = torch.cat([logits, groups[:, None].float()], dim=1)

    def fit_all(logits: Tensor, *_: Tensor) -> Sequence[Calibration]:
        fitted.append(set(logits[:, -1].tolist()))
        measured.append(set())

        def calibration(logits: Tensor) -> Tensor:
            measured[-1].update(logits[:, -1].tolist())
            return logits

        return [calibration]

    cross_validate(fit_all, numbered, labels, weights, groups, 'softmax', num_folds=7)
    assert len(fitted) == 7
    assert all(not a & b for a, b in zip(fitted, measured))
    assert set.union(*measured) == set(range(120))
    assert sum(map(len, measured)) == 120


def test_no_objects_and_no_high_scores_have_no_gap() -> None:
    logits = torch.full((20, 3), -8.0)
    labels, weights, groups = torch.full((20,), 3), torch.ones(20), torch.arange(20)
    (found,) = cross_validate(
        lambda *_: [scaled_by(1.0)], logits, labels, weights, groups, 'sigmoid'
    )
    assert math.isnan(found.foreground_gap)
    assert all(math.isnan(gap) for gap in found.score_gap.values())


@pytest.mark.parametrize('num_folds', [1, 21])
def test_folds_need_images(num_folds: int) -> None:
    with pytest.raises(ValueError, match='from 2 to the 20 images'):
        image_folds(torch.arange(20), 20, num_folds, seed=0)


def errors_of(*nll: float) -> HeldOutErrors:
    values = torch.tensor(nll, dtype=torch.float64)
    return HeldOutErrors(values, values, torch.ones(len(nll), dtype=torch.float64), {}, 0.0, 5)


def test_the_difference_is_paired_by_image() -> None:
    one, other = errors_of(1.0, 9.0, 5.0), errors_of(0.9, 8.8, 4.9)
    mean, standard_error = nll_excess(one, other)
    differences = torch.tensor([0.1, 0.2, 0.1], dtype=torch.float64)
    assert mean == pytest.approx(float(differences.mean()))
    # Four fifths of the images are in each fit: 1 + 5 / 4 times the variance.
    expected = 1.5 * float(differences.std() / math.sqrt(3))
    assert standard_error == pytest.approx(expected)
    assert nll_excess(other, other) == (0.0, 0.0)


def test_a_simpler_one_is_taken_unless_it_is_surely_worse() -> None:
    best = errors_of(1.0, 2.0, 3.0)
    surely_worse = errors_of(1.1, 2.1, 3.1)
    perhaps_worse = errors_of(1.5, 1.7, 3.0)
    choose = simplest_within_one_standard_error
    assert choose([surely_worse, best], [0, 1]) == 1
    assert choose([perhaps_worse, best], [0, 1]) == 0
    assert choose([surely_worse, perhaps_worse, best], [0, 1, 2]) == 1
    assert choose([best, surely_worse], [0, 1]) == 0
    assert choose([perhaps_worse, best], [1, 1]) == 1


def test_a_temperature_that_is_needed_is_taken() -> None:
    logits, labels, weights, groups = draw('softmax')

    def fit_all(*samples: Tensor) -> list[Calibration]:
        return [scaled_by(1.0), scaled_by(1 / fit_global_temperature(*samples, 'softmax'))]

    errors = cross_validate(fit_all, 2 * logits, labels, weights, groups, 'softmax')
    assert errors[1].mean_nll < errors[0].mean_nll
    assert simplest_within_one_standard_error(errors, [0, 1]) == 1
