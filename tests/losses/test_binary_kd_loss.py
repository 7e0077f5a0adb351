from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from torch import Tensor

from calkd_det.errors import ConfigError
from calkd_det.losses import BinaryKDLoss, binary_kd_loss

WEIGHTINGS = ['all', 'foreground', 'difference']
every_weighting = pytest.mark.parametrize('weighting', WEIGHTINGS)


def log_sigmoid(z: float) -> float:
    return -math.log1p(math.exp(-z)) if z > 0 else z - math.log1p(math.exp(z))


def reference(
    z_s: np.ndarray,
    z_t: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    tau: float,
    weighting: str,
) -> float:
    """The definition, in float64, a sample and a class at a time."""
    total, count = 0.0, 0
    num_classes = z_s.shape[1]
    for n in range(len(z_s)):
        is_object = labels[n] < num_classes and weights[n] > 0
        count += is_object
        for c in range(num_classes):
            s, t = float(z_s[n, c]) / tau, float(z_t[n, c]) / tau
            p_s, p_t = math.exp(log_sigmoid(s)), math.exp(log_sigmoid(t))
            divergence = p_t * (log_sigmoid(t) - log_sigmoid(s))
            divergence += (1 - p_t) * (log_sigmoid(-t) - log_sigmoid(-s))
            factor = {'all': 1, 'foreground': is_object, 'difference': abs(p_t - p_s)}[weighting]
            total += weights[n] * factor * divergence
    return tau**2 * total / max(count, 1)


def samples(n: int = 40, classes: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    z_s, z_t = torch.randn(2, n, classes, generator=generator) * 4
    labels = torch.randint(classes, (n,), generator=generator)
    labels[n // 4 :] = classes
    weights = torch.rand(n, generator=generator) + 0.5
    weights[::3] = 0
    return z_s, z_t, labels, weights


@every_weighting
@pytest.mark.parametrize('tau', [0.5, 1.0, 2.0])
@pytest.mark.parametrize('classes', [1, 5, 80])
def test_equals_its_definition(weighting: str, tau: float, classes: int) -> None:
    inputs = samples(classes=classes)
    expected = reference(*(x.double().numpy() for x in inputs), tau, weighting)
    loss = binary_kd_loss(*inputs, tau=tau, weighting=weighting)
    assert expected > 0
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ('weighting', 'expected'),
    [
        # Scores 1/2 and 3/4: KL = 0.75 ln 1.5 + 0.25 ln 0.5 = 0.130812, for one of two classes
        # of an object and one of two of the background; divided by one object.
        ('all', 2 * 0.1308120),
        ('foreground', 0.1308120),
        ('difference', 2 * 0.25 * 0.1308120),
    ],
)
def test_by_hand(weighting: str, expected: float) -> None:
    z_s = torch.zeros(2, 2)
    z_t = torch.tensor([[math.log(3), 0.0], [0.0, math.log(3)]])
    loss = binary_kd_loss(z_s, z_t, torch.tensor([0, 2]), torch.ones(2), weighting=weighting)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_gradient_of_all_is_the_difference_of_scores() -> None:
    z_s, z_t, labels, _ = samples()
    z_s.requires_grad_()
    tau = 2.0
    binary_kd_loss(z_s, z_t, labels, torch.ones(40), tau=tau, weighting='all').backward()
    expected = tau * ((z_s / tau).sigmoid() - (z_t / tau).sigmoid()) / 10
    assert torch.allclose(z_s.grad, expected, atol=1e-6)


def test_no_weighting_moves_the_student_away_from_the_teacher() -> None:
    for weighting in WEIGHTINGS:
        z_s, z_t, labels, weights = samples()
        z_s.requires_grad_()
        binary_kd_loss(z_s, z_t, labels, weights, weighting=weighting).backward()
        assert (z_s.grad * (z_s - z_t) >= 0).all(), weighting


def test_what_each_weighting_teaches_of_the_background() -> None:
    z_s, z_t, labels, weights = samples()
    background = (labels == 5) & (weights > 0)
    grads = {}
    for weighting in WEIGHTINGS:
        z = z_s.clone().requires_grad_()
        binary_kd_loss(z, z_t, labels, weights, weighting=weighting).backward()
        grads[weighting] = z.grad[background].abs()
    assert not grads['foreground'].any()
    assert grads['all'].min() > 0
    # Where both deny a class, next to nothing of the difference is left.
    alike = (z_s.sigmoid() - z_t.sigmoid()).abs()[background] < 0.01
    assert alike.any()
    ratio = grads['difference'][alike] / grads['all'][alike].clamp(min=1e-12)
    assert ratio.max() < 0.03


@every_weighting
def test_background_alone_is_divided_by_one(weighting: str) -> None:
    z_s, z_t, labels, weights = samples()
    labels[:] = 5
    z_s.requires_grad_()
    loss = binary_kd_loss(z_s, z_t, labels, weights, weighting=weighting)
    expected = reference(
        *(x.detach().double().numpy() for x in (z_s, z_t, labels, weights)), 1.0, weighting
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert z_s.grad is not None


@every_weighting
def test_more_easy_background_changes_nothing(weighting: str) -> None:
    z_s, z_t, labels, weights = samples()
    before = binary_kd_loss(z_s, z_t, labels, weights, weighting=weighting)
    easy = torch.full((1000, 5), -30.0)
    after = binary_kd_loss(
        torch.cat([z_s, easy]),
        torch.cat([z_t, easy + 1]),
        torch.cat([labels, torch.full((1000,), 5)]),
        torch.cat([weights, torch.ones(1000)]),
        weighting=weighting,
    )
    assert torch.allclose(before, after, rtol=1e-5)


@every_weighting
def test_extreme_logits(weighting: str) -> None:
    z_s = torch.tensor([[1e4, -1e4, 1e4]], requires_grad=True)
    z_t = torch.tensor([[-1e4, -1e4, 1e4]])
    loss = binary_kd_loss(z_s, z_t, torch.tensor([0]), torch.ones(1), weighting=weighting)
    loss.backward()
    assert loss.item() == pytest.approx(1e4)
    assert z_s.grad[0].tolist() == pytest.approx([1.0, 0.0, 0.0])


def test_the_mean_number_of_objects_over_processes_divides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As if another process had 26 objects where this one has 6."""
    inputs = samples()
    alone = binary_kd_loss(*inputs)
    assert int(((inputs[2] < 5) & (inputs[3] > 0)).sum()) == 6
    module = sys.modules[binary_kd_loss.__module__]
    monkeypatch.setattr(module, 'reduce_mean', lambda count: (count + 26) / 2)
    assert torch.allclose(binary_kd_loss(*inputs), alone * 6 / 16)


@every_weighting
@pytest.mark.parametrize('kind', [float, torch.tensor, lambda x: torch.tensor(x).half()])
def test_the_divisor_of_the_head_takes_the_place_of_the_number_of_objects(
    weighting: str, kind: Callable
) -> None:
    inputs = samples()
    alone = binary_kd_loss(*inputs, weighting=weighting)
    divided = binary_kd_loss(*inputs, weighting=weighting, avg_factor=kind(1.5))
    assert torch.allclose(divided, alone * 6 / 1.5)
    assert divided.dtype == torch.float32
    module = BinaryKDLoss(weighting=weighting, loss_weight=0.5)
    assert torch.equal(module(*inputs, avg_factor=kind(1.5)), 0.5 * divided)


def test_the_divisor_of_the_head_is_not_averaged_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_communication(count: Tensor) -> Tensor:
        raise AssertionError

    monkeypatch.setattr(sys.modules[binary_kd_loss.__module__], 'reduce_mean', no_communication)
    assert binary_kd_loss(*samples(), avg_factor=3.0) > 0


def test_a_divisor_of_zero_gives_zero_where_there_is_nothing_to_divide() -> None:
    z_s, z_t, labels, weights = samples()
    loss = binary_kd_loss(z_s, z_t, labels, torch.zeros_like(weights), avg_factor=0.0)
    assert loss == 0


def test_module_passes_its_arguments_on() -> None:
    inputs = samples()
    cfg = dict(type='BinaryKDLoss', tau=2.0, loss_weight=0.25, weighting='foreground')
    module = MODELS.build(cfg)
    expected = 0.25 * binary_kd_loss(*inputs, tau=2.0, weighting='foreground')
    assert torch.equal(module(*inputs), expected)
    assert module.activation == 'sigmoid'
    assert repr(module) == "BinaryKDLoss(tau=2.0, loss_weight=0.25, weighting='foreground')"


@pytest.mark.parametrize('value', [0, -1.0, math.nan, '2', None])
def test_bad_tau(value: Any) -> None:
    with pytest.raises(ConfigError, match=r'distillation\.tau must be a finite number > 0'):
        BinaryKDLoss(tau=value)


@pytest.mark.parametrize('value', [-1.0, math.inf, '1'])
def test_bad_loss_weight(value: Any) -> None:
    with pytest.raises(ConfigError, match=r'distillation\.loss_weight must be a finite number >='):
        BinaryKDLoss(loss_weight=value)


@pytest.mark.parametrize('value', ['diference', '', None, 1, ['all']])
def test_bad_weighting(value: Any) -> None:
    with pytest.raises(
        ConfigError,
        match=r"distillation\.weighting must be 'all', 'foreground' or 'difference', but is",
    ):
        BinaryKDLoss(weighting=value)


def test_a_slip_is_recognised() -> None:
    with pytest.raises(ConfigError, match="did you mean 'difference'"):
        BinaryKDLoss(weighting='diference')
