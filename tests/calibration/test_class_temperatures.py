from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax
from torch import Tensor

from calkd_det.calibration.class_temperatures import (
    fit_class_temperatures,
    foreground_background,
)
from calkd_det.calibration.temperature import fit_temperature

TRUE = torch.tensor([0.7, 1.0, 2.0, 3.0])


def samples(count: int, temperatures: Tensor, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Draw logits and labels from softmax(ln p_k / T_k), ten samples an image."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, len(temperatures), generator=generator) * 4
    logits = logits.log_softmax(dim=1) + torch.randn(count, 1, generator=generator)
    labels = torch.multinomial(
        (logits.log_softmax(1) / temperatures).softmax(1), 1, generator=generator
    )[:, 0]
    return logits, labels, torch.arange(count) // 10


def test_finds_the_temperatures_that_labels_were_drawn_with() -> None:
    logits, labels, groups = samples(6000, TRUE)
    fit = fit_class_temperatures(logits, labels, groups=groups)
    assert fit.kept == 'classes'
    assert fit.temperatures == pytest.approx(TRUE.tolist(), rel=0.08)
    errors = fit.held_out_nll
    assert errors['classes'] < errors['global'] < errors['identity']


def test_is_the_maximum_a_posteriori_of_its_definition() -> None:
    logits, labels, groups = samples(300, TRUE)
    prior_std = 0.2
    fit = fit_class_temperatures(logits, labels, groups=groups, prior_std=prior_std)
    t = fit_temperature(logits, labels, num_resamples=0).temperature
    z, y = logits.double().log_softmax(1).numpy(), labels.numpy()

    def objective(log_t: np.ndarray) -> float:
        log_p = log_softmax(z / np.exp(log_t), axis=1)
        prior = ((log_t - np.log(t)) ** 2).sum() / (2 * prior_std**2)
        return -log_p[np.arange(len(y)), y].sum() + prior

    expected = np.exp(minimize(objective, np.full(4, np.log(t)), tol=1e-10).x)
    assert fit.temperatures == pytest.approx(expected.tolist(), rel=1e-3)


def test_few_samples_are_drawn_to_the_global_temperature() -> None:
    logits, labels, groups = samples(2000, torch.full((4,), 2.0))
    spreads = []
    for prior_std in (0.01, 0.3):
        fit = fit_class_temperatures(logits, labels, groups=groups, prior_std=prior_std)
        spreads.append(np.ptp(fit.temperatures))
        assert fit.temperatures == pytest.approx([2.0] * 4, rel=0.15)
    assert spreads[0] < 0.02


def test_foreground_and_background() -> None:
    tied = foreground_background(4)
    logits, labels, groups = samples(4000, torch.tensor([2.0, 2.0, 2.0, 0.8]))
    fit = fit_class_temperatures(logits, labels, tied=tied, groups=groups)
    assert len(set(fit.temperatures[:3])) == 1
    assert fit.temperatures == pytest.approx([2.0, 2.0, 2.0, 0.8], rel=0.08)


def test_calibrated_logits_keep_the_identity() -> None:
    """Of 60 draws of calibrated logits, at least 57 get no temperature."""
    kept = []
    for seed in range(60):
        logits, labels, groups = samples(400, torch.ones(4), seed)
        fit = fit_class_temperatures(logits, labels, groups=groups)
        if fit.kept == 'identity':
            assert fit.temperatures == (1.0,) * 4
        kept.append(fit.kept)
    assert kept.count('identity') >= 57


def test_weights_are_repeated_samples() -> None:
    logits, labels, groups = samples(400, TRUE)
    weights = torch.arange(400) % 3
    repeated = torch.arange(400).repeat_interleave(weights)
    a = fit_class_temperatures(logits, labels, weights=weights.double(), groups=groups)
    b = fit_class_temperatures(logits[repeated], labels[repeated], groups=groups[repeated])
    assert a.kept == b.kept == 'classes'
    assert a.temperatures == pytest.approx(b.temperatures, rel=1e-3)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(logits=torch.full((20, 4), torch.nan)), 'not finite'),
        (dict(labels=torch.full((20,), 4)), r'outside \[0, 3\]'),
        (dict(tied=(0, 1, 2)), 'tied must give each of the 4 classes'),
        (dict(tied=(0, 0, 2, 2)), 'tied must give each of the 4 classes'),
        (dict(prior_std=0.0), 'prior_std must be > 0'),
        (dict(num_folds=3), 'num_folds must be from 2 to the 2 images'),
        (dict(weights=torch.zeros(20)), 'all zero'),
    ],
)
def test_bad_input(changes: dict, message: str) -> None:
    logits, labels, groups = samples(20, TRUE)
    arguments = dict(logits=logits, labels=labels, groups=groups, num_folds=2) | changes
    with pytest.raises(ValueError, match=message):
        fit_class_temperatures(arguments.pop('logits'), arguments.pop('labels'), **arguments)
