"""The fitted temperature against plain float64 fits, known temperatures and symmetries."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from calkd_det.calibration.temperature import TemperatureAccumulator, fit_temperature


def draw(rng, num_samples, num_classes, scale=3.0, true_t=2.0):
    logits = rng.normal(size=(num_samples, num_classes)) * scale
    noise = rng.gumbel(size=logits.shape)
    labels = (logits / true_t + noise).argmax(axis=1)
    return torch.from_numpy(logits), torch.from_numpy(labels)


def plain_nll(log_t, logits, labels, weights, activation):
    scaled = logits * np.exp(-log_t)
    if activation == 'softmax':
        nll = -log_softmax(scaled, axis=1)[np.arange(len(labels)), labels]
    else:
        targets = np.eye(logits.shape[1] + 1)[labels][:, :-1]
        # -[y log s(x) + (1 - y) log(1 - s(x))] = log(1 + e^x) - y x
        nll = (np.logaddexp(0, scaled) - targets * scaled).sum(axis=1)
    return (weights * nll).sum() / weights.sum()


def plain_fit(logits, labels, weights, activation):
    result = minimize_scalar(
        plain_nll,
        bounds=(np.log(0.05), np.log(20)),
        args=(logits, labels, weights, activation),
        method='bounded',
        options={'xatol': 1e-9},
    )
    return np.exp(result.x)


@pytest.mark.parametrize('activation', ['softmax', 'sigmoid'])
def test_equals_a_plain_float64_fit(activation):
    rng = np.random.default_rng(0)
    interior = 0
    for _ in range(500):
        num_samples, num_classes = int(rng.integers(1, 60)), int(rng.integers(2, 9))
        logits, labels = draw(rng, num_samples, num_classes, rng.uniform(0.5, 6))
        if activation == 'sigmoid':
            labels[torch.from_numpy(rng.random(num_samples) < 0.5)] = num_classes
        weights = torch.from_numpy(rng.uniform(0.1, 2, num_samples))
        fit = fit_temperature(
            logits, labels, weights=weights, activation=activation, num_resamples=0
        )
        oracle = plain_fit(logits.numpy(), labels.numpy(), weights.numpy(), activation)
        args = (logits.numpy(), labels.numpy(), weights.numpy(), activation)
        if fit.at_bound:  # the oracle stops anywhere on a flat end of the curve
            assert fit.nll_after <= plain_nll(np.log(oracle), *args) + 1e-12
        else:
            assert fit.temperature == pytest.approx(oracle, rel=1e-4)
        assert fit.nll_before == pytest.approx(plain_nll(0.0, *args), rel=1e-10)
        assert fit.nll_after == pytest.approx(
            plain_nll(np.log(fit.temperature), *args), rel=1e-10, abs=1e-12
        )
        assert fit.nll_after <= fit.nll_before + 1e-12
        interior += not fit.at_bound
    assert interior > 75


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('activation', ['softmax', 'sigmoid'])
def test_streaming_equals_in_memory(activation, dtype):
    rng = np.random.default_rng(1)
    for _ in range(50):
        num_samples, num_classes = int(rng.integers(1, 200)), int(rng.integers(2, 82))
        logits, labels = draw(rng, num_samples, num_classes, 10 ** rng.uniform(-1, 1.5))
        logits = logits.to(dtype)
        weights = torch.from_numpy(rng.integers(0, 3, num_samples)) + (
            torch.arange(num_samples) == 0
        )
        groups = torch.from_numpy(rng.integers(0, 10, num_samples)) * 10**9
        whole = fit_temperature(
            logits,
            labels,
            weights=weights,
            groups=groups,
            activation=activation,
            num_resamples=20,
        )
        accumulator = TemperatureAccumulator(activation)
        for chunk in zip(*(x.split(37) for x in (logits, labels, weights, groups))):
            accumulator.update(*chunk)
        streamed = accumulator.compute(num_resamples=20)
        assert streamed.temperature == pytest.approx(whole.temperature, rel=2e-5)
        assert streamed.nll_before == pytest.approx(whole.nll_before, rel=1e-5, abs=1e-6)
        assert streamed.nll_after == pytest.approx(whole.nll_after, rel=1e-5, abs=1e-5)
        assert (streamed.num_samples, streamed.num_groups) == (whole.num_samples, whole.num_groups)


@pytest.mark.oracle
def test_equals_probmetrics():
    from probmetrics.calibrators import TemperatureScalingCalibrator
    from probmetrics.distributions import CategoricalLogits

    rng = np.random.default_rng(2)
    for _ in range(1000):
        logits, labels = draw(rng, int(rng.integers(100, 300)), int(rng.integers(2, 12)))
        calibrator = TemperatureScalingCalibrator(opt='bisection', max_bisection_steps=60)
        calibrator.fit_torch(CategoricalLogits(logits), labels)
        theirs = 1 / float(calibrator.invtemp_)
        ours = fit_temperature(logits, labels, num_resamples=0).temperature
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_interval_covers_the_true_temperature():
    rng = np.random.default_rng(3)
    repetitions, covered = 400, 0
    for _ in range(repetitions):
        accumulator = TemperatureAccumulator()
        accumulator.update(*draw(rng, 400, 4))
        low, high = accumulator.compute(num_resamples=200).interval
        covered += low <= 2.0 <= high
    assert 0.92 <= covered / repetitions <= 0.98


def test_scaling_logits_scales_the_temperature():
    rng = np.random.default_rng(4)
    for _ in range(50):
        logits, labels = draw(rng, 200, 5)
        factor = rng.uniform(0.2, 5)
        plain = fit_temperature(logits, labels, num_resamples=0).temperature
        scaled = fit_temperature(factor * logits, labels, num_resamples=0).temperature
        assert scaled == pytest.approx(factor * plain, rel=1e-7)


def test_weights_are_repeated_samples():
    rng = np.random.default_rng(5)
    for _ in range(50):
        logits, labels = draw(rng, 60, 5)
        repeats = torch.from_numpy(rng.integers(0, 4, 60))
        weighted = fit_temperature(logits, labels, weights=repeats, num_resamples=0)
        repeated = fit_temperature(
            logits.repeat_interleave(repeats, dim=0),
            labels.repeat_interleave(repeats),
            num_resamples=0,
        )
        assert weighted.temperature == pytest.approx(repeated.temperature, rel=1e-8)
        assert weighted.nll_after == pytest.approx(repeated.nll_after, rel=1e-10)
        assert weighted.num_samples == int((repeats > 0).sum())


def test_groups_of_copies_widen_the_interval():
    logits, labels = draw(np.random.default_rng(6), 200, 5)
    copies, copied_labels = logits.repeat_interleave(16, dim=0), labels.repeat_interleave(16)
    groups = torch.arange(200).repeat_interleave(16)

    def width(**kwargs):
        low, high = fit_temperature(copies, copied_labels, **kwargs).interval
        return high - low

    assert width(groups=groups) / width() == pytest.approx(4, rel=0.2)
    low, high = fit_temperature(logits, labels).interval
    assert width(groups=groups) == pytest.approx(high - low, rel=0.1)


def test_samples_without_groups_give_the_width_of_the_sample_bootstrap():
    logits, labels = draw(np.random.default_rng(7), 20000, 3)
    low, high = fit_temperature(logits, labels).interval
    each = fit_temperature(logits, labels, groups=torch.arange(20000), num_resamples=400).interval
    assert high - low == pytest.approx(each[1] - each[0], rel=0.15)


def test_same_seed_same_interval():
    logits, labels = draw(np.random.default_rng(8), 300, 4)
    fits = [fit_temperature(logits, labels, seed=seed) for seed in (1, 1, 2)]
    assert fits[0] == fits[1]
    assert fits[0].interval != fits[2].interval
    with pytest.raises(dataclasses.FrozenInstanceError):
        fits[0].temperature = 1.0


@pytest.mark.parametrize('scale', [3.0, 300.0, 1e6])
def test_perfect_samples_stop_at_the_lower_bound(scale):
    labels = torch.arange(5).repeat(8)
    fit = fit_temperature(scale * torch.eye(5)[labels], labels)
    assert (fit.temperature, fit.at_bound, fit.interval) == (0.05, True, (0.05, 0.05))


def test_wrong_samples_stop_at_the_upper_bound():
    labels = torch.arange(5).repeat(8)
    fit = fit_temperature(3 * torch.eye(5)[(labels + 1) % 5], labels)
    assert (fit.temperature, fit.at_bound, fit.interval) == (20.0, True, (20.0, 20.0))


def test_random_labels_flatten_the_logits():
    rng = np.random.default_rng(9)
    logits = torch.from_numpy(rng.normal(size=(2000, 10)) * 5)
    fit = fit_temperature(logits, torch.from_numpy(rng.integers(0, 10, 2000)))
    assert fit.at_bound
    assert fit.temperature == 20


def test_custom_bounds_stop_the_search():
    logits, labels = draw(np.random.default_rng(10), 500, 4)
    fit = fit_temperature(logits, labels, bounds=(1, 1.2))
    assert (fit.temperature, fit.at_bound, fit.bounds) == (1.2, True, (1.0, 1.2))


def test_one_sample_has_no_interval():
    fit = fit_temperature(torch.tensor([[1.0, 2.0, -3.0]]), torch.tensor([0]))
    assert fit.interval is None
    assert 0.05 < fit.temperature < 20


def test_one_class_works_for_sigmoid_alone():
    logits = torch.tensor([[2.0], [2.0], [2.0], [2.0]])
    fit = fit_temperature(logits, torch.tensor([0, 0, 0, 1]), activation='sigmoid')
    assert fit.temperature == pytest.approx(2 / np.log(3), rel=1e-8)
    with pytest.raises(ValueError, match='does not depend on T'):
        fit_temperature(logits, torch.zeros(4, dtype=torch.long))


def test_half_precision_is_fitted_in_higher_precision():
    logits, labels = draw(np.random.default_rng(11), 500, 4)
    for dtype in (torch.float16, torch.bfloat16):
        rounded = logits.to(dtype)
        expected = fit_temperature(rounded.double(), labels, num_resamples=0).temperature
        assert fit_temperature(rounded, labels, num_resamples=0).temperature == pytest.approx(
            expected, rel=1e-8
        )


GOOD = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.5]])
LABELS = torch.tensor([0, 1, 1])


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'logits': torch.zeros(0, 2)}, 'empty'),
        ({'logits': torch.zeros(3)}, r'shape \(N, C\)'),
        ({'logits': torch.zeros(3, 2, dtype=torch.long)}, 'floating point'),
        ({'logits': GOOD * torch.tensor([1.0, float('nan')])}, r'3 of 6 .* first at \(0, 1\)'),
        ({'logits': GOOD / torch.tensor([[1.0], [0.0], [1.0]])}, r'2 of 6 .* first at \(1, 0\)'),
        ({'logits': torch.ones(3, 2)}, 'does not depend on T'),
        ({'labels': torch.tensor([0, 1])}, r'labels must have shape \(3,\)'),
        ({'labels': torch.tensor([0, 1, 2])}, r'1 of 3 .* outside \[0, 1\], first at 2'),
        ({'labels': torch.tensor([0, -1, 3]), 'activation': 'sigmoid'}, r'2 of 3 .* \[0, 2\]'),
        ({'labels': torch.tensor([0.0, 1.0, 1.0])}, 'labels must be integers'),
        ({'weights': torch.tensor([1.0, -1.0, 1.0])}, 'negative'),
        ({'weights': torch.zeros(3)}, 'all zero'),
        ({'weights': torch.ones(2)}, r'weights must have shape \(3,\)'),
        ({'groups': torch.ones(3)}, 'groups must be integers'),
        ({'groups': torch.ones(4, dtype=torch.long)}, r'groups must have shape \(3,\)'),
        ({'activation': 'identity'}, 'softmax, sigmoid'),
        ({'bounds': (0.0, 2.0)}, 'bounds'),
        ({'bounds': (1.5, 3.0)}, 'bounds'),
    ],
)
def test_bad_input_is_a_sentence(kwargs, message):
    arguments = {'logits': GOOD, 'labels': LABELS, **kwargs}
    with pytest.raises(ValueError, match=message):
        fit_temperature(**arguments)


def test_accumulator_refuses_to_mix():
    accumulator = TemperatureAccumulator()
    with pytest.raises(ValueError, match='no samples'):
        accumulator.compute()
    accumulator.update(GOOD, LABELS)
    with pytest.raises(ValueError, match='for all samples or for none'):
        accumulator.update(GOOD, LABELS, groups=LABELS)
    with pytest.raises(ValueError, match='expected 2 classes'):
        accumulator.update(torch.ones(3, 4), LABELS)
