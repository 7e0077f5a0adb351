"""Calibration errors against torchmetrics, plain loops and their identities."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from calkd_det.calibration.reliability import (
    ReliabilityAccumulator,
    adaptive_ece,
    classwise_ece,
    reliability,
    reliability_from_confidences,
    top_label,
    wilson_interval,
)


def draw(rng, num_samples=None, num_classes=None):
    num_samples = num_samples or int(rng.integers(1, 200))
    num_classes = num_classes or int(rng.integers(2, 8))
    probs = rng.dirichlet(np.full(num_classes, rng.uniform(0.2, 2)), size=num_samples)
    probs = 0.999 * probs + 0.001 / num_classes  # torchmetrics has an extra bin for exactly 1
    return torch.from_numpy(probs), torch.from_numpy(rng.integers(0, num_classes, num_samples))


def plain_ece(confidences, hits, weights, edges):
    total = 0.0
    for lower, upper in itertools.pairwise(edges):
        inside = [
            i for i, c in enumerate(confidences) if lower < c <= upper or (lower == c == edges[0])
        ]
        mass = sum(weights[i] for i in inside)
        if mass > 0:
            accuracy = sum(weights[i] * hits[i] for i in inside) / mass
            confidence = sum(weights[i] * confidences[i] for i in inside) / mass
            total += mass / sum(weights) * abs(accuracy - confidence)
    return total


def test_ece_and_mce_equal_torchmetrics():
    rng = np.random.default_rng(0)
    for _ in range(1000):
        probs, labels = draw(rng)
        n_bins = int(rng.integers(1, 31))
        result = reliability(probs, labels, n_bins=n_bins)
        for norm, ours in (('l1', result.ece), ('max', result.mce)):
            theirs = multiclass_calibration_error(probs, labels, probs.shape[1], n_bins, norm)
            assert ours == pytest.approx(float(theirs), abs=2e-6)


def test_parts_of_the_ece_add_up():
    rng = np.random.default_rng(1)
    for _ in range(200):
        probs, labels = draw(rng)
        weights = torch.from_numpy(rng.uniform(0, 2, len(labels)))
        for binning in ('width', 'mass'):
            result = reliability(probs, labels, binning=binning, weights=weights)
            gaps = [w * abs(g) for w, g in zip(result.weight, result.gap) if w > 0]
            assert result.ece == pytest.approx(sum(gaps) / sum(result.weight), abs=1e-14)
            assert result.ece == pytest.approx(result.ece_over + result.ece_under, abs=1e-14)
            assert result.ece <= result.mce + 1e-14
            assert result.mean_accuracy - result.mean_confidence == pytest.approx(
                result.ece_under - result.ece_over, abs=1e-12
            )
            assert sum(result.count) == result.num_samples == int((weights > 0).sum())


def test_equal_mass_equals_a_sorted_split_without_ties():
    rng = np.random.default_rng(2)
    for _ in range(200):
        n_bins = int(rng.integers(1, 20))
        probs, labels = draw(rng, num_samples=n_bins * int(rng.integers(1, 12)))
        confidences, hits = probs.max(1).values.numpy(), (probs.argmax(1) == labels).numpy()
        order = np.argsort(confidences)
        expected = sum(
            len(part) / len(order) * abs(hits[part].mean() - confidences[part].mean())
            for part in np.split(order, n_bins)
        )
        assert adaptive_ece(probs, labels, n_bins=n_bins) == pytest.approx(expected, abs=1e-12)
        counts = reliability(probs, labels, n_bins=n_bins, binning='mass').count
        assert set(counts) == {len(order) // n_bins}


def test_equal_mass_never_splits_ties():
    confidences = torch.tensor([0.2, 0.5, 0.5, 0.5, 0.5, 0.9])
    hits = torch.tensor([False, True, True, False, False, True])
    results = [
        reliability_from_confidences(confidences[order], hits[order], n_bins=3, binning='mass')
        for order in (torch.arange(6), torch.arange(5, -1, -1))
    ]
    assert results[0] == results[1]
    assert results[0].count == (5, 1)
    assert results[0].upper == (0.5, 1.0)
    all_tied = reliability_from_confidences(
        torch.full((7,), 0.4), torch.ones(7).bool(), binning='mass'
    )
    assert all_tied.count == (7, 0)
    assert all_tied.ece == pytest.approx(0.6)


def test_weights_are_repeated_samples():
    rng = np.random.default_rng(3)
    for _ in range(100):
        probs, labels = draw(rng, num_samples=60)
        repeats = torch.from_numpy(rng.integers(0, 4, 60))
        repeated = probs.repeat_interleave(repeats, 0), labels.repeat_interleave(repeats)
        for binning in ('width', 'mass'):
            ours = reliability(probs, labels, binning=binning, weights=repeats)
            theirs = reliability(*repeated, binning=binning)
            assert ours.ece == pytest.approx(theirs.ece, abs=1e-12)
            assert ours.mce == pytest.approx(theirs.mce, abs=1e-12)
            assert ours.upper == theirs.upper
            assert classwise_ece(probs, labels, binning=binning, weights=repeats) == pytest.approx(
                classwise_ece(*repeated, binning=binning), abs=1e-12
            )


@pytest.mark.parametrize('activation', ['softmax', 'sigmoid'])
def test_classwise_equals_a_plain_loop(activation):
    rng = np.random.default_rng(4)
    for _ in range(40):
        probs, labels = draw(rng, num_samples=int(rng.integers(1, 40)))
        num_classes = probs.shape[1]
        if activation == 'sigmoid':
            probs = torch.from_numpy(rng.random(tuple(probs.shape)))
            labels[::2] = num_classes
        weights = rng.uniform(0.1, 2, len(labels))
        edges = [k / 15 for k in range(16)]
        expected = sum(
            plain_ece(probs[:, c].tolist(), (labels == c).tolist(), weights.tolist(), edges)
            for c in range(num_classes)
        )
        ours = classwise_ece(
            probs, labels, weights=torch.from_numpy(weights), activation=activation
        )
        assert ours == pytest.approx(expected / num_classes, abs=1e-12)


def test_classwise_equal_mass_equals_a_sorted_split():
    rng = np.random.default_rng(5)
    probs, labels = draw(rng, num_samples=120, num_classes=4)
    errors = []
    for index in range(4):
        column, hits = probs[:, index].numpy(), (labels == index).numpy()
        parts = np.split(np.argsort(column), 10)
        errors.append(np.mean([abs(hits[p].mean() - column[p].mean()) for p in parts]))
    ours = classwise_ece(probs, labels, n_bins=10, binning='mass')
    assert ours == pytest.approx(np.mean(errors), abs=1e-12)


@pytest.mark.parametrize('activation', ['softmax', 'sigmoid'])
def test_streaming_equals_in_memory(activation):
    rng = np.random.default_rng(6)
    for _ in range(100):
        probs, labels = draw(rng)
        if activation == 'sigmoid':
            labels[::3] = probs.shape[1]
        weights = torch.from_numpy(rng.integers(1, 4, len(labels)))
        processes = [ReliabilityAccumulator(10, activation) for _ in range(2)]
        for index, chunk in enumerate(zip(*(x.split(17) for x in (probs, labels, weights)))):
            processes[index % 2].update(*chunk)
        total = ReliabilityAccumulator(10, activation)
        total.sums = sum(process.sums for process in processes)
        whole = reliability(probs, labels, n_bins=10, weights=weights, activation=activation)
        streamed = total.compute()
        assert streamed.count == whole.count
        assert streamed.ece == pytest.approx(whole.ece, abs=1e-14)
        assert streamed.mce == pytest.approx(whole.mce, abs=1e-14)


def test_edges_belong_to_the_bin_below_and_zero_to_the_first():
    confidences = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    result = reliability_from_confidences(confidences, torch.ones(5).bool(), n_bins=4)
    assert result.count == (2, 1, 1, 1)
    for n_bins in range(1, 60):
        edges = torch.arange(1, n_bins + 1, dtype=torch.float64) / n_bins
        result = reliability_from_confidences(edges, edges > 0, n_bins=n_bins)
        assert result.count == (1,) * n_bins


def test_empty_bins_are_nan():
    result = reliability(torch.tensor([[0.9, 0.1]]), torch.tensor([1]), n_bins=2)
    assert math.isnan(result.accuracy[0])
    assert math.isnan(result.gap[0])
    assert (result.count, result.ece, result.mce) == ((0, 1), pytest.approx(0.9), result.ece)


def test_one_class_is_always_right():
    result = reliability(torch.ones(4, 1), torch.zeros(4, dtype=torch.long))
    assert (result.ece, result.mce, result.count[-1]) == (0, 0, 4)


def test_background_of_a_sigmoid_head_is_never_a_hit():
    probs = torch.tensor([[0.6, 0.1], [0.6, 0.1]])
    confidences, hits = top_label(probs, torch.tensor([0, 2]), activation='sigmoid')
    assert hits.tolist() == [True, False]
    assert confidences.dtype == torch.float64
    with pytest.raises(ValueError, match=r'outside \[0, 1\]'):
        top_label(probs, torch.tensor([0, 2]))


def test_effective_count_is_the_count_for_equal_weights():
    probs, labels = draw(np.random.default_rng(7), num_samples=50)
    assert reliability(probs, labels).effective_count == pytest.approx(
        reliability(probs, labels).count
    )
    heavy = torch.ones(50)
    heavy[0] = 1e6
    assert sum(reliability(probs, labels, n_bins=1, weights=heavy).effective_count) < 1.01


def test_wilson_interval_solves_its_equation():
    rng = np.random.default_rng(8)
    for _ in range(200):
        count = int(rng.integers(1, 500))
        share = int(rng.integers(0, count + 1)) / count
        for limit in wilson_interval(share, count):
            # The limits are the p from which the observed share is 1.96 standard errors away.
            error = math.sqrt(limit * (1 - limit) / count)
            assert abs(share - limit) == pytest.approx(1.96 * error, abs=1e-7)
    assert all(math.isnan(limit) for limit in wilson_interval(0.5, 0))


PROBS = torch.tensor([[0.9, 0.1], [0.4, 0.6]])
LABELS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'probs': torch.zeros(0, 2)}, 'empty'),
        ({'probs': PROBS * torch.nan}, r'4 of 4 .* not finite, first at \(0, 0\)'),
        ({'probs': PROBS * 4 - 1}, r'outside \[0, 1\], first at \(0, 0\)'),
        ({'probs': PROBS[0]}, r'shape \(N, C\)'),
        ({'labels': torch.tensor([0, 2])}, r'outside \[0, 1\], first at 1'),
        ({'labels': torch.tensor([0])}, r'labels must have shape \(2,\)'),
        ({'labels': torch.tensor([True, False])}, 'labels must be integers'),
        ({'weights': torch.tensor([1.0, torch.nan])}, 'first at 1'),
        ({'weights': torch.zeros(2)}, 'all zero'),
        ({'n_bins': 0}, 'n_bins'),
        ({'n_bins': 1.5}, 'n_bins'),
        ({'binning': 'adaptive'}, 'width, mass'),
        ({'activation': 'none'}, 'softmax, sigmoid'),
    ],
)
def test_bad_input_is_a_sentence(kwargs, message):
    with pytest.raises(ValueError, match=message):
        reliability(**{'probs': PROBS, 'labels': LABELS, **kwargs})


def test_bad_confidences_and_an_empty_accumulator_are_refused():
    with pytest.raises(ValueError, match='hits must be bool or floating point'):
        reliability_from_confidences(torch.rand(3), torch.ones(3, dtype=torch.long))
    with pytest.raises(ValueError, match='hits: 1 of 3 values outside'):
        reliability_from_confidences(torch.rand(3), torch.tensor([0.5, 2.0, 1.0]))
    with pytest.raises(ValueError, match=r'shape \(N,\)'):
        reliability_from_confidences(torch.rand(3, 1), torch.ones(3, 1).bool())
    with pytest.raises(ValueError, match='no samples'):
        ReliabilityAccumulator().compute()
