"""Fits and figures with target probabilities in place of labels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from calkd_det.calibration import (
    TemperatureAccumulator,
    brier_score,
    fit_platt_scaling,
    fit_temperature,
    negative_log_likelihood,
    reliability,
)
from calkd_det.calibration.targets import is_object, quality_targets, target_of
from calkd_det.knowledge import Activation

ACTIVATIONS = ['softmax', 'sigmoid']


def made_up(activation: Activation, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits (N, C), target probabilities (N, C) and weights (N,), float64."""
    generator = torch.Generator().manual_seed(seed)
    logits, noise = 3 * torch.randn(2, 500, 4, generator=generator, dtype=torch.float64)
    mixed = logits / 1.7 + noise / 3
    targets = mixed.softmax(1) if activation == 'softmax' else mixed.sigmoid()
    return logits, targets, torch.rand(500, generator=generator, dtype=torch.float64)


def nll(logits: Tensor, targets: Tensor, weights: Tensor, activation: Activation) -> float:
    """Return the weighted mean NLL by torch's own losses."""
    if activation == 'softmax':
        losses = F.cross_entropy(logits, targets, reduction='none')
    else:
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction='none').sum(1)
    return float((losses * weights).sum() / weights.sum())


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    return F.one_hot(labels, num_classes + 1)[:, :num_classes].double()


@pytest.mark.parametrize('activation', ACTIVATIONS)
def test_temperature_minimises_the_likelihood_of_targets(activation: Activation) -> None:
    logits, targets, weights = made_up(activation)
    fit = fit_temperature(logits, targets, weights=weights, activation=activation)
    found = minimize_scalar(
        lambda t: nll(logits / t, targets, weights, activation),
        bounds=(0.5, 5),
        method='bounded',
        options={'xatol': 1e-9},
    )
    assert fit.temperature == pytest.approx(found.x, abs=1e-5)
    assert fit.nll_after == pytest.approx(found.fun, abs=1e-9)
    assert fit.nll_before == pytest.approx(nll(logits, targets, weights, activation), abs=1e-9)
    low, high = fit.interval
    assert low < fit.temperature < high
    accumulator = TemperatureAccumulator(activation)
    for rows in torch.arange(500).split(77):
        accumulator.update(logits[rows].float(), targets[rows].float(), weights[rows], rows)
    streamed = accumulator.compute(num_resamples=0)
    assert streamed.temperature == pytest.approx(fit.temperature, abs=1e-4)
    assert streamed.nll_after == pytest.approx(fit.nll_after, abs=1e-4)


@pytest.mark.parametrize('activation', ACTIVATIONS)
def test_one_hot_targets_are_labels(activation: Activation) -> None:
    logits, _, weights = made_up(activation)
    highest = 4 + (activation == 'sigmoid')  # the background of sigmoids
    labels = torch.randint(0, highest, (500,), generator=torch.Generator().manual_seed(3))
    targets = one_hot(labels, 4)
    options = dict(weights=weights, activation=activation)
    by_label, by_target = (fit_temperature(logits, y, **options) for y in (labels, targets))
    assert by_target.temperature == pytest.approx(by_label.temperature, abs=1e-7)
    assert by_target.interval == pytest.approx(by_label.interval, abs=1e-6)
    probs = logits.softmax(1) if activation == 'softmax' else logits.sigmoid()
    for figure in (
        lambda y: negative_log_likelihood(logits, y, **options),
        lambda y: brier_score(probs, y, **options),
        lambda y: reliability(probs, y, **options).ece,
        lambda y: reliability(probs, y, binning='mass', **options).mean_accuracy,
    ):
        assert figure(targets) == pytest.approx(figure(labels), abs=1e-12)


def test_figures_of_targets_are_those_of_their_definitions() -> None:
    logits, targets, weights = made_up('sigmoid')
    probs = logits.sigmoid()
    options = dict(weights=weights, activation='sigmoid')
    assert negative_log_likelihood(logits, targets, **options) == pytest.approx(
        nll(logits, targets, weights, 'sigmoid')
    )
    distance = (probs - targets).square().sum(dim=1)
    assert brier_score(probs, targets, **options) == pytest.approx(
        float((distance * weights).sum() / weights.sum())
    )
    top = probs.argmax(dim=1)
    own = targets[torch.arange(500), top]
    found = reliability(probs, targets, n_bins=1, **options)
    assert found.mean_accuracy == pytest.approx(float((own * weights).sum() / weights.sum()))
    # A target between 0 and 1 is met by the score that equals it.
    assert reliability(targets, targets, activation='sigmoid').ece == pytest.approx(0, abs=1e-12)


def test_hard_labels_bias_the_temperature_of_a_head_that_predicts_a_quality() -> None:
    generator = torch.Generator().manual_seed(0)
    quality = torch.rand(4000, generator=generator) * 0.6 + 0.3
    logits = 2 * quality.logit().double().unsqueeze(1)
    labels = torch.zeros(4000, dtype=torch.long)
    soft = fit_temperature(logits, quality_targets(labels, quality, 1), activation='sigmoid')
    hard = fit_temperature(logits, labels, activation='sigmoid')
    assert soft.temperature == pytest.approx(2, rel=1e-4)
    assert hard.temperature < 1.5
    platt = fit_platt_scaling(logits, quality_targets(labels, quality, 1))
    assert platt.parameters == pytest.approx({'a': 0.5, 'b': 0.0}, abs=1e-4)


def test_targets_of_qualities() -> None:
    labels, qualities = torch.tensor([1, 2, 0]), torch.tensor([0.25, 0.7, 1.0001])
    targets = quality_targets(labels, qualities, 2)
    assert targets.tolist() == [[0, 0.25], [0, 0], [1, 0]]  # the second is background
    assert is_object(targets, 2).tolist() == is_object(labels, 2).tolist() == [True, False, True]
    assert target_of(targets, torch.tensor([1, 1, 1])).tolist() == [0.25, 0, 0]
    assert target_of(labels, torch.tensor([1, 1, 1])).tolist() == [1, 0, 0]
