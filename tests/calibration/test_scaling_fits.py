"""Fits of Platt scaling, beta calibration and the background's bias, against other optimisers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit, log_expit, log_softmax
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from calkd_det.calibration import (
    BackgroundBiasScaling,
    BetaScaling,
    PlattScaling,
    fit_background_bias,
    fit_beta_scaling,
    fit_platt_scaling,
    fit_temperature,
    negative_log_likelihood,
)
from calkd_det.calibration.binned_decisions import BinnedDecisions
from calkd_det.calibration.scaling_families import BACKGROUND_BIAS, BETA, PLATT, TEMPERATURE
from calkd_det.calibration.scaling_fits import fit_global_temperature, fit_scaling, fit_streamed

FITS = {
    'platt': (fit_platt_scaling, PlattScaling, dict(a=0.7, b=-0.5)),
    'beta': (fit_beta_scaling, BetaScaling, dict(a=0.6, b=1.3, c=-0.4)),
    'bias': (fit_background_bias, BackgroundBiasScaling, dict(temperature=1.6, bias=0.7)),
}
FAMILIES = {'platt': PLATT, 'beta': BETA, 'bias': BACKGROUND_BIAS}
EVERY = pytest.mark.parametrize('name', FITS)
SIGMOID = pytest.mark.parametrize('name', ['platt', 'beta'])


def draw(
    name: str, count: int, num_classes: int, seed: int, soft: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw logits, labels or target probabilities with the parameters of FITS, and weights."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, num_classes, generator=generator, dtype=torch.float64)
    _, cls, parameters = FITS[name]
    calibrated = cls(**parameters)(logits).double()
    weights = torch.rand(count, generator=generator, dtype=torch.float64) + 0.2
    if name == 'bias':
        scores = calibrated.softmax(dim=1)
        if soft:
            mixed = 0.8 * scores + 0.2 * torch.rand(scores.shape, generator=generator)
            return logits, mixed / mixed.sum(dim=1, keepdim=True), weights
        return logits, torch.multinomial(scores, 1, generator=generator)[:, 0], weights
    scores = calibrated.sigmoid()
    noise = torch.rand(scores.shape, generator=generator, dtype=torch.float64)
    targets = 0.8 * scores + 0.2 * noise if soft else (noise < scores).double()
    return logits, targets, weights


def oracle(name: str, logits: Tensor, labels: Tensor, weights: Tensor) -> np.ndarray:
    """Minimise the definition with scipy's SLSQP."""
    z, w = logits.double().numpy(), weights.numpy()
    y = labels.numpy()
    if not labels.is_floating_point():
        y = np.eye(z.shape[1] + 1)[y][:, : z.shape[1]]

    def sigmoid_objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        ones = np.ones_like(z)
        features = (z, ones) if name == 'platt' else (log_expit(z), -log_expit(-z), ones)
        logit = sum(factor * feature for factor, feature in zip(theta, features))
        nll = -(y * log_expit(logit) + (1 - y) * log_expit(-logit)).sum(axis=1)
        residual = w[:, None] * (expit(logit) - y)
        gradient = np.array([(residual * feature).sum() for feature in features])
        return w @ nll / w.sum(), gradient / w.sum()

    def softmax_objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        background = np.eye(z.shape[1])[-1]
        log_p = log_softmax(theta[0] * z + theta[1] * background, axis=1)
        residual = w[:, None] * (np.exp(log_p) - y)
        gradient = np.array([(residual * z).sum(), (residual * background).sum()])
        return -w @ (y * log_p).sum(axis=1) / w.sum(), gradient / w.sum()

    objective = softmax_objective if name == 'bias' else sigmoid_objective
    theta = np.array({'platt': [1.0, 0.0], 'beta': [1.0, 1.0, 0.0], 'bias': [1.0, 0.0]}[name])
    slopes = 2 if name == 'beta' else 1
    bounds = [(0.0, 20.0)] * slopes + [(-50.0, 50.0)]
    for _ in range(3):
        options = dict(ftol=1e-16, maxiter=500)
        theta = minimize(
            objective, theta, jac=True, method='SLSQP', bounds=bounds, options=options
        ).x
    if name == 'bias':
        theta[0] = 1 / theta[0]
    return theta


@EVERY
def test_equals_another_optimiser(name: str) -> None:
    rng = np.random.default_rng(1)
    for seed in range(200):
        samples = draw(
            name, int(rng.integers(150, 400)), int(rng.integers(2, 6)), seed, soft=seed % 2 == 1
        )
        logits, labels, weights = samples
        found = FITS[name][0](logits, labels, weights=weights, num_resamples=0)
        expected = oracle(name, *samples)
        assert list(found.parameters.values()) == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert not found.at_bound
        assert found.intervals is None


def test_platt_equals_logistic_regression() -> None:
    rng = np.random.default_rng(2)
    for seed in range(200):
        logits, targets, weights = draw('platt', int(rng.integers(150, 400)), 3, seed)
        found = fit_platt_scaling(logits, targets, weights=weights, num_resamples=0).parameters
        model = LogisticRegression(C=np.inf, solver='newton-cholesky', tol=1e-10)
        model.fit(logits.reshape(-1, 1), targets.reshape(-1), weights.repeat_interleave(3))
        expected = [float(model.coef_[0, 0]), float(model.intercept_[0])]
        assert [found['a'], found['b']] == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.oracle
def test_beta_equals_betacal(monkeypatch: pytest.MonkeyPatch) -> None:
    from betacal import BetaCalibration, beta_calibration

    exact = partial(LogisticRegression, solver='newton-cholesky', tol=1e-10)
    monkeypatch.setattr(beta_calibration, 'LogisticRegression', exact)
    compared = 0
    for seed in range(200):
        logits, targets, _ = draw('beta', 300, 3, seed)
        found = fit_beta_scaling(logits, targets, num_resamples=0).parameters
        theirs = BetaCalibration(parameters='abm')
        theirs.fit(logits.sigmoid().reshape(-1, 1).numpy(), targets.reshape(-1).numpy())
        # It drops a feature of a negative slope instead of bounding the slope.
        if min(found['a'], found['b']) > 0:
            a, b = theirs.calibrator_.map_[:2]
            c = float(theirs.calibrator_.lr_.intercept_[0])
            assert list(found.values()) == pytest.approx([a, b, c], rel=1e-4, abs=1e-4)
            compared += 1
    assert compared > 150


@EVERY
def test_known_parameters_lie_in_the_interval(name: str) -> None:
    fit, _, parameters = FITS[name]
    inside = dict.fromkeys(parameters, 0)
    for seed in range(200):
        logits, labels, _ = draw(name, 400, 3, seed)
        groups = torch.arange(400) // 4
        intervals = fit(logits, labels, groups=groups, num_resamples=200, seed=seed).intervals
        for parameter, value in parameters.items():
            low, high = intervals[parameter]
            inside[parameter] += low <= value <= high
    assert all(0.90 <= count / 200 <= 0.985 for count in inside.values()), inside


@EVERY
def test_streamed_equals_whole(name: str) -> None:
    logits, labels, weights = draw(name, 5000, 3, seed=0)
    groups = torch.arange(5000) // 7 % 90

    def batches() -> Iterator[tuple[Tensor, ...]]:
        for rows in torch.arange(5000).split(611):
            yield logits[rows], labels[rows], weights[rows], groups[rows]

    whole = fit_scaling(
        FAMILIES[name], logits, labels, weights=weights, groups=groups, num_resamples=50
    )
    streamed = fit_streamed(FAMILIES[name], batches, num_resamples=50)
    assert streamed.parameters == pytest.approx(whole.parameters, rel=1e-9)
    assert streamed.nll_after == pytest.approx(whole.nll_after, rel=1e-12)
    for parameter, interval in whole.intervals.items():
        low, high = interval
        # The order of the groups differs, and with it the resamples.
        assert streamed.intervals[parameter] == pytest.approx(interval, abs=0.6 * (high - low))


@pytest.mark.parametrize('per_class', [False, True])
@SIGMOID
def test_binned_decisions_have_the_fit_of_all(name: str, per_class: bool) -> None:
    logits, labels, weights = draw(name, 5000, 3, seed=0)
    logits[:5] = 40.0  # beyond the bins
    decisions = BinnedDecisions(3)
    for rows in torch.arange(5000).split(611):
        decisions.update(logits[rows], labels[rows], weights[rows])
    assert sum(float(batch[2].sum()) for batch in decisions.batches()) == pytest.approx(
        3 * float(weights.sum())
    )

    options = dict(per_class=per_class, num_resamples=0)
    found = fit_streamed(FAMILIES[name], decisions.batches, **options)
    expected = fit_scaling(FAMILIES[name], logits, labels, weights=weights, **options)
    for parameter, value in expected.parameters.items():
        assert found.parameters[parameter] == pytest.approx(value, rel=1e-3, abs=1e-3)

    def whole() -> Iterator[tuple[Tensor, ...]]:
        yield logits, labels, weights, torch.arange(5000)

    warm = fit_streamed(FAMILIES[name], whole, start=found.theta, **options)
    for parameter, value in expected.parameters.items():
        assert warm.parameters[parameter] == pytest.approx(value, rel=1e-6, abs=1e-6)


@SIGMOID
def test_binned_decisions_of_images_have_the_intervals_of_all(name: str) -> None:
    """The classes share bins, and images differ: each has a shift of its own."""
    logits, labels, weights = draw(name, 5000, 3, seed=0)
    images = torch.arange(5000) % 90
    logits += torch.randn(90, 1, generator=torch.Generator().manual_seed(1))[images]
    decisions = BinnedDecisions(1, num_groups=100)
    decisions.update(logits, labels, weights, images)
    found = fit_streamed(FAMILIES[name], decisions.batches)
    expected = fit_scaling(FAMILIES[name], logits, labels, weights=weights, groups=images)
    assert found.parameters == pytest.approx(expected.parameters, rel=1e-3, abs=1e-3)
    for parameter, interval in expected.intervals.items():
        assert found.intervals[parameter] == pytest.approx(interval, rel=1e-3, abs=1e-3)


def test_binned_decisions_take_labels_and_no_weights() -> None:
    logits, targets, _ = draw('platt', 3000, 3, seed=2)
    labels = torch.where(targets.sum(dim=1) > 0, targets.argmax(dim=1), 3)
    decisions = BinnedDecisions(3)
    decisions.update(logits, labels)
    found = fit_streamed(PLATT, decisions.batches, num_resamples=0)
    expected = fit_platt_scaling(logits, labels, num_resamples=0)
    assert found.parameters == pytest.approx(expected.parameters, rel=1e-3, abs=1e-3)


def test_binned_decisions_refuse_what_would_fall_into_a_wrong_bin() -> None:
    logits, targets, _ = draw('platt', 8, 3, seed=2)
    not_finite = logits.clone()
    not_finite[5, 1] = float('nan')
    for sizes, samples, message in (
        ((3,), (not_finite, targets), r'logits: 1 of 24 values not finite, first at \(5, 1\)'),
        ((3,), (logits, torch.full((8,), 4)), r'labels: 8 of 8 values outside \[0, 3\]'),
        ((3,), (logits, targets, -torch.ones(8)), 'weights: 8 of 8 values negative'),
        ((4,), (logits, targets), 'expected 4 classes, got 3'),
        ((3, 2), (logits, targets), 'groups must be given, to be dealt to 2 sets'),
    ):
        with pytest.raises(ValueError, match=message):
            BinnedDecisions(*sizes).update(*samples)


@EVERY
def test_the_calibrator_has_the_likelihood_of_the_fit(name: str) -> None:
    fit, cls, _ = FITS[name]
    logits, labels, weights = draw(name, 500, 3, seed=3)
    if name != 'bias':  # a label for each sample, as a dense head has
        labels = torch.where(labels.sum(dim=1) > 0, labels.argmax(dim=1), 3)
    found = fit(logits, labels, weights=weights)
    options = dict(activation='softmax' if name == 'bias' else 'sigmoid', weights=weights)
    for calibrator, expected in (
        (cls(), found.nll_before),
        (cls(**found.parameters), found.nll_after),
    ):
        nll = negative_log_likelihood(calibrator(logits), labels, **options)
        assert nll == pytest.approx(expected, rel=1e-5)
    assert found.nll_after < found.nll_before


@EVERY
def test_weights_are_repeated_samples(name: str) -> None:
    logits, labels, _ = draw(name, 300, 3, seed=4)
    weights = torch.arange(300) % 3
    repeated = torch.arange(300).repeat_interleave(weights)
    fit = FITS[name][0]
    weighted = fit(logits, labels, weights=weights.double(), num_resamples=0)
    plain = fit(logits[repeated], labels[repeated], num_resamples=0)
    assert weighted.parameters == pytest.approx(plain.parameters, rel=1e-6)


@EVERY
def test_soft_targets_are_shares_of_labels(name: str) -> None:
    """Three labels of a sample, with weights of 0.5, 0.3 and 0.2, are one soft target."""
    logits = draw(name, 300, 3, seed=5)[0]
    generator = torch.Generator().manual_seed(6)
    last = 2 if name == 'bias' else 3
    labels = torch.randint(0, last + 1, (3, 300), generator=generator)
    shares = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    targets = torch.zeros(300, 4, dtype=torch.float64)
    for share, column in zip(shares, labels):
        targets[torch.arange(300), column] += share
    fit = FITS[name][0]
    soft = fit(logits, targets[:, :3], num_resamples=0)
    hard = fit(
        logits.repeat(3, 1),
        labels.flatten(),
        weights=shares.repeat_interleave(300),
        num_resamples=0,
    )
    assert soft.parameters == pytest.approx(hard.parameters, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize('activation', ['softmax', 'sigmoid'])
def test_the_temperature_of_a_family_is_that_of_its_own_fit(activation: str) -> None:
    for seed in range(20):
        logits, labels, weights = draw('bias', 300, 4, seed)
        expected = fit_temperature(
            logits, labels, weights=weights, activation=activation, num_resamples=0
        )
        found = fit_global_temperature(logits, labels, weights, activation)
        assert found == pytest.approx(expected.temperature, rel=1e-5)


@SIGMOID
def test_each_class_is_drawn_to_all_and_rare_ones_stay_finite(name: str) -> None:
    logits, targets, _ = draw(name, 4000, 3, seed=7)
    targets[:, 0] = 0  # a class that does not occur
    calibrated = FITS[name][1](**{**FITS[name][2], 'a': 2.0})(logits).double()
    generator = torch.Generator().manual_seed(8)
    drawn = torch.rand(calibrated.shape, generator=generator) < calibrated.sigmoid()
    targets[:, 2] = drawn[:, 2].double()
    found = FITS[name][0](logits, targets, per_class=True)
    assert found.intervals is None
    assert not found.at_bound
    assert [len(values) for values in found.parameters.values()] == [3] * len(FITS[name][2])
    assert found.parameters['a'][1] == pytest.approx(FITS[name][2]['a'], rel=0.25)
    assert found.parameters['a'][2] == pytest.approx(2.0, rel=0.25)
    pooled = FITS[name][0](logits, targets)
    assert found.nll_after < pooled.nll_after
    shift = 'b' if name == 'platt' else 'c'
    assert found.parameters[shift][0] < pooled.parameters[shift] - 1


@SIGMOID
def test_each_class_is_the_maximum_a_posteriori(name: str) -> None:
    logits, targets, weights = draw(name, 300, 3, seed=9)
    found = FITS[name][0](logits, targets, weights=weights, per_class=True).parameters
    pooled = np.array([*FITS[name][0](logits, targets, weights=weights).parameters.values()])
    std = np.array([0.3, 1.0] if name == 'platt' else [0.3, 0.3, 1.0])
    for column in range(3):
        z, y, w = logits[:, column].numpy(), targets[:, column].numpy(), weights.numpy()
        features = (z, 1) if name == 'platt' else (log_expit(z), -log_expit(-z), 1)

        def objective(theta: np.ndarray, z=z, y=y, w=w, features=features) -> float:
            logit = sum(factor * feature for factor, feature in zip(theta, features))
            nll = -(y * log_expit(logit) + (1 - y) * log_expit(-logit)) @ w
            return nll + 0.5 * (((theta - pooled) / std) ** 2).sum()

        expected = minimize(objective, pooled, method='BFGS', options=dict(gtol=1e-6)).x
        values = [found[parameter][column] for parameter in found]
        assert values == pytest.approx(expected, rel=1e-4, abs=1e-4)


@SIGMOID
def test_slopes_are_not_negative(name: str) -> None:
    """Labels that fall with the score would reverse the order: the slopes stop at zero."""
    logits, targets, _ = draw(name, 400, 3, seed=10)
    found = FITS[name][0](logits, 1 - targets)
    assert found.parameters['a'] == 0.0
    assert found.parameters.get('b') == 0.0 or name == 'platt'
    assert not found.at_bound
    share = float((1 - targets).mean())
    shift = found.parameters['c' if name == 'beta' else 'b']
    assert shift == pytest.approx(np.log(share / (1 - share)), abs=1e-6)


@EVERY
def test_labels_that_are_always_right_stop_at_a_bound(name: str) -> None:
    logits = draw(name, 400, 3, seed=11)[0]
    labels = logits.argmax(dim=1) if name == 'bias' else (logits > 0).double()
    assert FITS[name][0](logits, labels).at_bound


def test_larger_families_fit_better() -> None:
    logits, targets, weights = draw('beta', 500, 3, seed=12)
    errors = [
        fit_scaling(family, logits, targets, weights=weights, num_resamples=0).nll_after
        for family in (TEMPERATURE['sigmoid'], PLATT, BETA)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > errors[2]


@EVERY
@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(logits=torch.full((20, 3), torch.nan)), 'not finite'),
        (dict(labels=torch.full((20,), 4)), 'outside'),
        (dict(labels=torch.full((20, 3), 1.2)), 'outside'),
        (dict(labels=torch.full((20, 3), torch.nan)), 'outside'),
        (dict(labels=torch.full((20, 2), 0.5)), 'shape of the logits'),
        (dict(weights=torch.zeros(20)), 'all zero'),
        (dict(weights=torch.full((20,), -1.0)), 'negative'),
        (dict(groups=torch.zeros(19, dtype=torch.long)), 'groups must have shape'),
    ],
)
def test_bad_input(name: str, changes: dict, message: str) -> None:
    arguments = dict(logits=torch.randn(20, 3), labels=torch.arange(20) % 3) | changes
    with pytest.raises(ValueError, match=message):
        FITS[name][0](arguments.pop('logits'), arguments.pop('labels'), **arguments)


def test_softmax_targets_sum_to_one_and_have_no_parameters_of_classes() -> None:
    logits = torch.randn(20, 3)
    with pytest.raises(ValueError, match='do not sum to 1'):
        fit_background_bias(logits, torch.full((20, 3), 0.5))
    with pytest.raises(ValueError, match='per_class is for sigmoid heads'):
        fit_background_bias(logits, torch.zeros(20, dtype=torch.long), per_class=True)
