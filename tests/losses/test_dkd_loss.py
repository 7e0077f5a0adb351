from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax

from calkd_det.errors import ConfigError
from calkd_det.losses import DKDLoss, dkd_loss, kd_loss


def reference(
    z_s: np.ndarray,
    z_t: np.ndarray,
    labels: np.ndarray,
    w: np.ndarray,
    alpha: float,
    beta: float,
    tau: float,
) -> float:
    """The definition, in float64, a sample and a class at a time."""
    total = 0.0
    for n, y in enumerate(labels):
        p_s = softmax(z_s[n].astype(np.float64) / tau)
        p_t = softmax(z_t[n].astype(np.float64) / tau)
        rest_s, rest_t = (sum(p[k] for k in range(len(p)) if k != y) for p in (p_s, p_t))
        target = p_t[y] * math.log(p_t[y] / p_s[y]) + rest_t * math.log(rest_t / rest_s)
        others = 0.0
        for k in range(len(p_s)):
            if k != y:
                q_s, q_t = p_s[k] / rest_s, p_t[k] / rest_t
                others += q_t * math.log(q_t / q_s)
        total += w[n] * (alpha * target + beta * others)
    return tau**2 * total / max(int((w > 0).sum()), 1)


def samples(n: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    z_s, z_t = torch.randn(2, n, classes, generator=generator) * 4
    labels = torch.randint(classes, (n,), generator=generator)
    labels[: n // 2] = classes - 1  # background, as in training
    return z_s, z_t, labels, torch.rand(n, generator=generator) * 2


@pytest.mark.parametrize('tau', [0.5, 1.0, 4.0])
@pytest.mark.parametrize(('alpha', 'beta'), [(1.0, 0.25), (1.0, 8.0), (0.0, 1.0), (2.0, 0.0)])
@pytest.mark.parametrize('classes', [2, 11, 81])
def test_equals_its_definition(classes: int, alpha: float, beta: float, tau: float) -> None:
    z_s, z_t, labels, weights = samples(40, classes, seed=classes)
    weights[::5] = 0
    expected = reference(
        z_s.numpy(), z_t.numpy(), labels.numpy(), weights.numpy(), alpha, beta, tau
    )
    loss = dkd_loss(z_s, z_t, labels, weights, alpha=alpha, beta=beta, tau=tau)
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_by_hand() -> None:
    z_t = torch.tensor([[0.5, 0.3, 0.2]]).log()
    z_s = torch.tensor([[0.2, 0.2, 0.6]]).log()
    target = 0.5 * math.log(0.5 / 0.2) + 0.5 * math.log(0.5 / 0.8)
    others = 0.6 * math.log(0.6 / 0.25) + 0.4 * math.log(0.4 / 0.75)
    loss = dkd_loss(z_s, z_t, torch.tensor([0]), torch.ones(1), alpha=1.0, beta=0.25, tau=1.0)
    assert loss.item() == pytest.approx(target + 0.25 * others, rel=1e-6)


@pytest.mark.parametrize('tau', [0.7, 1.0, 3.0])
def test_is_kd_where_beta_is_the_teachers_doubt_about_the_target(tau: float) -> None:
    z_s, z_t, labels, weights = samples(50, 7)
    doubt = 1 - (z_t / tau).softmax(dim=1).gather(1, labels[:, None])[:, 0]
    decoupled = dkd_loss(z_s, z_t, labels, weights, alpha=1.0, beta=doubt, tau=tau)
    assert decoupled.item() == pytest.approx(kd_loss(z_s, z_t, weights, tau=tau).item(), rel=1e-5)


@pytest.mark.parametrize('sure', [20.0, 200.0, 1e4])
def test_a_teacher_that_is_sure_still_teaches_about_the_other_classes(sure: float) -> None:
    z_t = torch.tensor([[sure, 1.0, 0.0, -1.0]])
    z_s = torch.tensor([[0.5, -1.0, 0.0, 1.0]], requires_grad=True)
    assert z_t.softmax(1)[0, 0] == 1
    loss = dkd_loss(z_s, z_t, torch.tensor([0]), torch.ones(1), alpha=0.0, beta=1.0)
    loss.backward()
    q_s, q_t = z_s.detach()[:, 1:].softmax(1), z_t[:, 1:].softmax(1)
    assert loss.item() == pytest.approx((q_t * (q_t / q_s).log()).sum().item(), rel=1e-5)
    assert torch.allclose(z_s.grad[:, 1:], q_s - q_t, atol=1e-6)
    assert z_s.grad[0, 0] == 0


@pytest.mark.parametrize('label', [0, 3])
def test_a_student_that_is_surely_wrong_gets_a_finite_loss_and_gradient(label: int) -> None:
    z_t = torch.tensor([[1e4, 0.0, 0.0, -1e4]])
    z_s = torch.tensor([[-1e4, 0.0, 1.0, 1e4]], requires_grad=True)
    loss = dkd_loss(z_s, z_t, torch.tensor([label]), torch.ones(1), beta=8.0)
    loss.backward()
    assert loss.item() > 1e4
    assert z_s.grad.isfinite().all()
    assert z_s.grad.abs().max() > 0.1


def test_the_parts_depend_on_what_they_say() -> None:
    z_s, z_t, labels, weights = samples(20, 6)
    is_target = torch.nn.functional.one_hot(labels, 6).bool()
    shifted = torch.where(is_target, z_s + 3, z_s)
    others = [dkd_loss(z, z_t, labels, weights, alpha=0.0, beta=1.0).item() for z in (z_s, shifted)]
    target = [dkd_loss(z, z_t, labels, weights, alpha=1.0, beta=0.0).item() for z in (z_s, shifted)]
    assert others[0] == pytest.approx(others[1], rel=1e-5)
    assert target[0] != pytest.approx(target[1], rel=1e-2)


def test_labels_of_samples_without_weight_are_not_looked_at() -> None:
    z_s, z_t, labels, weights = samples(8, 5)
    weights[3] = 0
    expected = dkd_loss(z_s, z_t, labels, weights)
    labels[3] = -1
    assert dkd_loss(z_s, z_t, labels, weights) == expected


def test_defaults_and_repr() -> None:
    loss = DKDLoss()
    assert (loss.alpha, loss.beta, loss.tau, loss.loss_weight) == (1.0, 0.25, 1.0, 1.0)
    assert 'alpha=1.0, beta=0.25, tau=1.0, loss_weight=1.0' in repr(loss)


@pytest.mark.parametrize('key', ['alpha', 'beta', 'loss_weight'])
@pytest.mark.parametrize('value', [-1.0, math.nan, math.inf, '1', None, True])
def test_bad_factor(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf'distillation\.{key} must be a finite number >= 0'):
        DKDLoss(**{key: value})


@pytest.mark.parametrize('value', [0, -1.0, math.nan, '2'])
def test_bad_tau(value: object) -> None:
    with pytest.raises(ConfigError, match=r'distillation\.tau must be a finite number > 0'):
        DKDLoss(tau=value)
