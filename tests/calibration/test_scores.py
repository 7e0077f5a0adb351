"""Brier score and negative log-likelihood against plain float64 loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from calkd_det.calibration.scores import brier_score, negative_log_likelihood


def draw(rng, activation):
    num_samples, num_classes = int(rng.integers(1, 30)), int(rng.integers(1, 6))
    logits = torch.from_numpy(rng.normal(size=(num_samples, num_classes)) * 4)
    highest = num_classes + (activation == 'sigmoid')
    labels = torch.from_numpy(rng.integers(0, highest, num_samples))
    return logits, labels, torch.from_numpy(rng.uniform(0.1, 2, num_samples))


def plain_probs(row, temperature, activation):
    scaled = [value / temperature for value in row]
    if activation == 'sigmoid':
        return [1 / (1 + math.exp(-value)) for value in scaled]
    total = sum(math.exp(value) for value in scaled)
    return [math.exp(value) / total for value in scaled]


@pytest.mark.parametrize('activation', ['softmax', 'sigmoid'])
def test_scores_equal_a_plain_loop(activation):
    rng = np.random.default_rng(0)
    for _ in range(200):
        logits, labels, weights = draw(rng, activation)
        temperature = rng.uniform(0.5, 3)
        nll = brier = 0.0
        probs = []
        for row, label, weight in zip(logits.tolist(), labels.tolist(), weights.tolist()):
            p = plain_probs(row, temperature, activation)
            probs.append(p)
            brier += weight * sum((q - (c == label)) ** 2 for c, q in enumerate(p))
            if activation == 'softmax':
                nll -= weight * math.log(p[label])
            else:
                nll -= weight * sum(math.log(q if c == label else 1 - q) for c, q in enumerate(p))
        total = float(weights.sum())
        assert negative_log_likelihood(
            logits, labels, temperature=temperature, activation=activation, weights=weights
        ) == pytest.approx(nll / total, rel=1e-9, abs=1e-12)
        assert brier_score(
            torch.tensor(probs, dtype=torch.float64),
            labels,
            activation=activation,
            weights=weights,
        ) == pytest.approx(brier / total, rel=1e-12, abs=1e-14)


def test_certain_and_wrong_is_a_finite_likelihood():
    logits = torch.tensor([[1e4, -1e4]])
    assert negative_log_likelihood(logits, torch.tensor([1])) == pytest.approx(2e4)
    assert negative_log_likelihood(logits, torch.tensor([0])) == 0


def test_more_rows_than_a_chunk():
    logits = torch.randn(10001, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(10001) % 3
    expected = torch.nn.functional.cross_entropy(logits.double(), labels)
    assert negative_log_likelihood(logits, labels) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize('temperature', [0.0, -1.0, float('nan'), float('inf')])
def test_bad_temperature_is_a_sentence(temperature):
    with pytest.raises(ValueError, match='temperature must be positive'):
        negative_log_likelihood(torch.ones(1, 2), torch.tensor([0]), temperature=temperature)


@pytest.mark.parametrize('score', [brier_score, negative_log_likelihood])
def test_bad_input_is_a_sentence(score):
    values = torch.full((2, 2), 0.5)
    labels = torch.tensor([0, 1])
    with pytest.raises(ValueError, match='empty'):
        score(torch.zeros(0, 2), labels[:0])
    with pytest.raises(ValueError, match='not finite, first at'):
        score(values * torch.inf, labels)
    with pytest.raises(ValueError, match=r'outside \[0, 1\]'):
        score(values, labels + 1)
    with pytest.raises(ValueError, match='all zero'):
        score(values, labels, weights=torch.zeros(2))
