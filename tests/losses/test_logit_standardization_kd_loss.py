from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from calkd_det.calibration import (
    ClassTemperatureScaling,
    ForegroundBackgroundScaling,
    TemperatureScaling,
)
from calkd_det.errors import ConfigError
from calkd_det.losses import (
    LogitStandardizationKDLoss,
    kd_loss,
    logit_standardization_kd_loss,
)


def reference(z_s: np.ndarray, z_t: np.ndarray, w: np.ndarray, tau: float, eps: float) -> float:
    """The definition, in float64, a sample and a class at a time."""
    total = 0.0
    for n in range(len(z_s)):
        logs = []
        for z in (z_s[n].astype(np.float64), z_t[n].astype(np.float64)):
            mean = sum(z) / len(z)
            deviation = math.sqrt(sum((value - mean) ** 2 for value in z) / len(z))
            logs.append(log_softmax([(value - mean) / (deviation + eps) / tau for value in z]))
        log_s, log_t = logs
        for k in range(len(log_s)):
            total += w[n] * math.exp(log_t[k]) * (log_t[k] - log_s[k])
    return tau**2 * total / max(int((w > 0).sum()), 1)


def samples(n: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    z_s, z_t = torch.randn(2, n, classes, generator=generator) * 4 + 3
    return z_s, z_t, torch.rand(n, generator=generator) * 2


@pytest.mark.parametrize('tau', [0.5, 1.0, 2.0])
@pytest.mark.parametrize('eps', [1e-7, 0.5])
@pytest.mark.parametrize('classes', [2, 11, 81])
def test_equals_its_definition(classes: int, eps: float, tau: float) -> None:
    z_s, z_t, weights = samples(40, classes, seed=classes)
    weights[::5] = 0
    expected = reference(z_s.numpy(), z_t.numpy(), weights.numpy(), tau, eps)
    loss = logit_standardization_kd_loss(z_s, z_t, weights, tau=tau, eps=eps)
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_by_hand() -> None:
    # Means 1 and 4, deviations 1 and 2: z-scores (1, -1) and (-1, 1).
    z_s, z_t = torch.tensor([[2.0, 0.0]]), torch.tensor([[2.0, 6.0]])
    p = 1 / (1 + math.exp(-2))
    expected = p * math.log(p / (1 - p)) + (1 - p) * math.log((1 - p) / p)
    loss = logit_standardization_kd_loss(z_s, z_t, torch.ones(1), tau=1.0)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('temperature', [0.3, 1.0, 1.5, 3.0, 20.0])
def test_a_calibration_temperature_cancels(temperature: float) -> None:
    z_s, z_t, weights = samples(30, 11)
    z_s.requires_grad_()
    calibrated = TemperatureScaling(temperature)(z_t)
    losses = [logit_standardization_kd_loss(z_s, z, weights) for z in (z_t, calibrated)]
    gradients = [torch.autograd.grad(loss, z_s)[0] for loss in losses]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    assert torch.allclose(*gradients, atol=1e-6)
    # Plain KD does depend on it.
    if temperature != 1:
        plain = [kd_loss(z_s, z, weights).item() for z in (z_t, calibrated)]
        assert plain[0] != pytest.approx(plain[1], rel=0.01)


def test_a_calibration_temperature_cancels_but_for_eps() -> None:
    z_s, z_t, weights = samples(30, 11)
    T, eps = 1.5, 0.4
    standardized = kd_loss(
        (z_s - z_s.mean(1, keepdim=True)) / (z_s.std(1, keepdim=True, unbiased=False) + eps),
        (z_t - z_t.mean(1, keepdim=True)) / (z_t.std(1, keepdim=True, unbiased=False) + T * eps),
        weights,
        tau=2.0,
    )
    loss = logit_standardization_kd_loss(z_s, z_t / T, weights, tau=2.0, eps=eps)
    assert torch.allclose(loss, standardized, rtol=1e-5)


@pytest.mark.parametrize(
    'calibrator',
    [
        ClassTemperatureScaling([1.0 + 0.2 * k for k in range(11)]),
        ForegroundBackgroundScaling([1.0] * 10 + [3.0]),
    ],
    ids=lambda calibrator: type(calibrator).__name__,
)
def test_a_temperature_for_each_class_does_not_cancel(calibrator: torch.nn.Module) -> None:
    z_s, z_t, weights = samples(30, 11)
    z_t[:, -1] += 6  # most samples are background
    before = logit_standardization_kd_loss(z_s, z_t, weights)
    assert logit_standardization_kd_loss(z_s, calibrator(z_t), weights).item() != pytest.approx(
        before.item(), rel=0.01
    )


@pytest.mark.parametrize(('factor', 'shift'), [(0.2, 0.0), (5.0, -3.0), (1.0, 7.0)])
def test_a_student_with_another_confidence_has_no_loss(factor: float, shift: float) -> None:
    _, z_t, weights = samples(30, 11)
    loss = logit_standardization_kd_loss(factor * z_t + shift, z_t, weights)
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_scores_are_bounded_however_sure_the_teacher_is() -> None:
    z_t = torch.zeros(1, 81)
    z_t[0, 0] = 1e4
    # Of a student with even scores the loss is ln K minus the entropy of the teacher's scores.
    z = torch.full((1, 81), -1 / math.sqrt(80))
    z[0, 0] = math.sqrt(80)
    p = (z / 2).softmax(1)
    loss = logit_standardization_kd_loss(torch.zeros(1, 81), z_t, torch.ones(1), tau=2.0)
    assert loss.item() == pytest.approx(4 * (math.log(81) + (p * p.log()).sum().item()), rel=1e-4)
    assert 0.53 < p.max() < 0.54


def test_logits_that_are_all_the_same_give_a_finite_gradient() -> None:
    z_s = torch.zeros(2, 5, requires_grad=True)
    _, z_t, _ = samples(2, 5)
    z_t[1] = 3.0
    loss = logit_standardization_kd_loss(z_s, z_t, torch.ones(2), eps=1e-3)
    loss.backward()
    assert loss.isfinite()
    assert z_s.grad.isfinite().all()


def test_defaults_and_repr() -> None:
    loss = LogitStandardizationKDLoss()
    assert (loss.tau, loss.loss_weight, loss.eps) == (2.0, 1.0, 1e-7)
    assert 'tau=2.0, loss_weight=1.0, eps=1e-07' in repr(loss)


@pytest.mark.parametrize('key', ['tau', 'eps'])
@pytest.mark.parametrize('value', [0, -1.0, math.nan, math.inf, '2', None, True])
def test_bad_tau_or_eps(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf'distillation\.{key} must be a finite number > 0'):
        LogitStandardizationKDLoss(**{key: value})


@pytest.mark.parametrize('value', [-1.0, math.nan, '1'])
def test_bad_weight(value: object) -> None:
    with pytest.raises(
        ConfigError, match=r'distillation\.loss_weight must be a finite number >= 0'
    ):
        LogitStandardizationKDLoss(loss_weight=value)
