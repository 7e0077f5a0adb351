from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from scipy.special import log_softmax

from calkd_det.errors import ConfigError
from calkd_det.losses import KDLoss, kd_loss


def reference(z_s: np.ndarray, z_t: np.ndarray, w: np.ndarray, tau: float) -> float:
    """The definition, in float64, a sample and a class at a time."""
    total = 0.0
    for n in range(len(z_s)):
        log_s = log_softmax(z_s[n].astype(np.float64) / tau)
        log_t = log_softmax(z_t[n].astype(np.float64) / tau)
        for k in range(len(log_s)):
            total += w[n] * math.exp(log_t[k]) * (log_t[k] - log_s[k])
    return tau**2 * total / max(int((w > 0).sum()), 1)


@pytest.mark.parametrize('tau', [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize('classes', [2, 11, 81])
def test_equals_its_definition(tau: float, classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    z_s, z_t = torch.randn(2, 40, classes, generator=generator) * 4
    weights = (torch.rand(40, generator=generator) * 2).where(torch.arange(40) % 5 > 0, 0.0)
    expected = reference(z_s.numpy(), z_t.numpy(), weights.numpy(), tau)
    assert kd_loss(z_s, z_t, weights, tau=tau).item() == pytest.approx(expected, rel=1e-5)


def test_is_the_textbook_mean_where_all_weights_are_one() -> None:
    z_s, z_t = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0))
    p, q = z_t.softmax(1), z_s.softmax(1)
    assert torch.allclose(kd_loss(z_s, z_t, torch.ones(9)), (p * (p / q).log()).sum(1).mean())


def test_gradient_is_the_difference_of_scores() -> None:
    z_s = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    z_t = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    tau = 2.0
    kd_loss(z_s, z_t, torch.ones(6), tau=tau).backward()
    expected = tau * ((z_s / tau).softmax(1) - (z_t / tau).softmax(1)) / 6
    assert torch.allclose(z_s.grad, expected, atol=1e-6)
    assert z_t.grad is None


@pytest.mark.parametrize('tau', [1.0, 4.0])
def test_zero_with_zero_gradient_where_student_is_teacher(tau: float) -> None:
    z = torch.randn(8, 11, requires_grad=True)
    loss = kd_loss(z, z.detach(), torch.ones(8), tau=tau)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert z.grad.abs().max() < 1e-6


def test_no_sample_gives_zero_with_a_graph() -> None:
    z = torch.zeros(0, 4, requires_grad=True)
    loss = kd_loss(z, torch.zeros(0, 4), torch.zeros(0))
    assert loss.item() == 0
    loss.backward()
    assert z.grad.shape == (0, 4)


def test_is_float32_for_half_precision_logits_that_would_overflow() -> None:
    z_s = torch.tensor([[3e4, -3e4, 0.0]], dtype=torch.float16, requires_grad=True)
    z_t = torch.tensor([[-3e4, 3e4, 0.0]], dtype=torch.float16)
    loss = kd_loss(z_s, z_t, torch.ones(1, dtype=torch.float16), tau=1.0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(6e4, rel=1e-3)
    assert z_s.grad.isfinite().all()


def test_is_float32_under_autocast() -> None:
    z_s, z_t = torch.randn(2, 16, 11)
    expected = kd_loss(z_s, z_t, torch.ones(16))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(kd_loss(z_s, z_t, torch.ones(16)), expected)


def test_module_scales_and_is_registered() -> None:
    z_s, z_t = torch.randn(2, 16, 11)
    labels, weights = torch.zeros(16, dtype=torch.long), torch.ones(16)
    module = MODELS.build(dict(type='KDLoss', tau=2.0, loss_weight=0.25))
    assert torch.equal(
        module(z_s, z_t, labels, weights), 0.25 * kd_loss(z_s, z_t, weights, tau=2.0)
    )
    assert not module.state_dict()


@pytest.mark.parametrize('value', [0, -1.0, math.nan, math.inf, '2', None, True])
def test_bad_tau(value: object) -> None:
    with pytest.raises(ConfigError, match=r'distillation\.tau must be a finite number > 0'):
        KDLoss(tau=value)


@pytest.mark.parametrize('value', [-1.0, math.nan, math.inf, '1'])
def test_bad_weight(value: object) -> None:
    with pytest.raises(
        ConfigError, match=r'distillation\.loss_weight must be a finite number >= 0'
    ):
        KDLoss(loss_weight=value)
