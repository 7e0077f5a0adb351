from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from calkd_det.errors import ConfigError
from calkd_det.losses import MLLDLoss, kd_loss, mlld_loss


def reference(
    z_s: np.ndarray,
    z_t: np.ndarray,
    taus: tuple[float, ...],
    levels: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> float:
    """The paper's sums, in float64, with both Gram matrices written out; all weights are one."""
    n, k = z_s.shape
    total = 0.0
    for tau in taus:
        scaled_s, scaled_t = z_s.astype(np.float64) / tau, z_t.astype(np.float64) / tau
        p_s, p_t = softmax(scaled_s, axis=1), softmax(scaled_t, axis=1)
        log_s, log_t = log_softmax(scaled_s, axis=1), log_softmax(scaled_t, axis=1)
        instance = sum(float(p_t[i] @ (log_t[i] - log_s[i])) for i in range(n)) * tau**2 / n
        batch = sum(
            float(p_s[i] @ p_s[j] - p_t[i] @ p_t[j]) ** 2 for i in range(n) for j in range(n)
        )
        classes = sum(
            float(p_s[:, a] @ p_s[:, b] - p_t[:, a] @ p_t[:, b]) ** 2
            for a in range(k)
            for b in range(k)
        )
        total += levels[0] * instance + levels[1] * batch / n + levels[2] * classes / k
    return total


def samples(n: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    z_s, z_t = torch.randn(2, n, classes, generator=torch.Generator().manual_seed(seed)) * 4
    return z_s, z_t


@pytest.mark.parametrize('levels', [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 2, 3)])
@pytest.mark.parametrize(('n', 'classes'), [(1, 2), (7, 11), (30, 5), (6, 81)])
def test_equals_its_definition(n: int, classes: int, levels: tuple) -> None:
    z_s, z_t = samples(n, classes, seed=n)
    taus = (1.0, 2.5, 4.0)
    expected = reference(z_s.numpy(), z_t.numpy(), taus, levels)
    names = ('instance_weight', 'batch_weight', 'class_weight')
    loss = mlld_loss(
        z_s, z_t, torch.ones(n), taus=taus, batch_size=None, **dict(zip(names, levels))
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_by_hand() -> None:
    # Scores (1, 0) and (0, 1) against (1, 0) twice, one temperature.
    z_s = torch.tensor([[200.0, 0.0], [0.0, 200.0]])
    z_t = torch.tensor([[200.0, 0.0], [200.0, 0.0]])
    # Gram of samples: I against ones, 2 entries differ by 1. Of classes: I against diag(2, 0).
    for name, expected in (('batch', 2 / 2), ('class', 2 / 2), ('instance', 200 / 2)):
        factors = {
            f'{level}_weight': float(level == name) for level in ('instance', 'batch', 'class')
        }
        loss = mlld_loss(z_s, z_t, torch.ones(2), taus=(1.0,), batch_size=None, **factors)
        assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('step', [1e-1, 1e-3, 1e-5])
def test_batch_level_keeps_its_digits_where_student_and_teacher_are_close(step: float) -> None:
    z_t, noise = samples(200, 9)
    z_s = (z_t + step * noise).requires_grad_()
    only = dict(instance_weight=0.0, class_weight=0.0, taus=(2.0,), batch_size=None)
    loss = mlld_loss(z_s, z_t, torch.ones(200), batch_weight=1.0, **only)
    loss.backward()
    exact = z_s.detach().double().requires_grad_()
    p_s, p_t = (exact / 2).softmax(1), (z_t.double() / 2).softmax(1)
    plain = (p_s @ p_s.T - p_t @ p_t.T).square().sum() / 200
    plain.backward()
    # What float32 cannot keep is the difference of the scores themselves.
    tolerance = max(1e-5, 1e-6 / step)
    assert loss.item() == pytest.approx(plain.item(), rel=tolerance)
    assert (z_s.grad.double() - exact.grad).norm() <= 3 * tolerance * exact.grad.norm()


def test_thousands_of_rois_need_no_matrix_of_pairs() -> None:
    z_s, z_t = samples(4096, 81)
    sizes = []

    class Sizes(torch.overrides.TorchFunctionMode):
        def __torch_function__(
            self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            sizes.append(result.numel() if isinstance(result, torch.Tensor) else 0)
            return result

    with Sizes():
        mlld_loss(z_s, z_t, torch.ones(4096), taus=(2.0,))
    assert max(sizes) == 4096 * 81


def test_is_scaled_to_a_batch_size() -> None:
    z_s, z_t = samples(12, 5)
    expected = reference(z_s.numpy(), z_t.numpy(), (3.0,), (1, 4 / 12, (4 / 12) ** 2))
    loss = mlld_loss(z_s, z_t, torch.ones(12), taus=(3.0,), batch_size=4.0)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(('level', 'growth'), [('instance', 1), ('batch', 10), ('class', 100)])
def test_grows_with_the_number_of_samples_only_without_a_batch_size(
    level: str, growth: int
) -> None:
    z_s, z_t = samples(16, 5)
    only = {f'{name}_weight': float(name == level) for name in ('instance', 'batch', 'class')}
    for batch_size, expected in ((64.0, 1), (None, growth)):
        one = mlld_loss(z_s, z_t, torch.ones(16), batch_size=batch_size, **only)
        ten = mlld_loss(
            z_s.repeat(10, 1), z_t.repeat(10, 1), torch.ones(160), batch_size=batch_size, **only
        )
        assert (ten / one).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('batch_size', [None, 64.0])
def test_samples_without_weight_are_left_out(batch_size: float | None) -> None:
    z_s, z_t = samples(20, 6)
    weights = (torch.arange(20) % 3 > 0).float()
    kept = weights > 0
    assert mlld_loss(z_s, z_t, weights, batch_size=batch_size).item() == pytest.approx(
        mlld_loss(z_s[kept], z_t[kept], weights[kept], batch_size=batch_size).item(), rel=1e-6
    )


def test_a_weight_of_two_is_a_sample_twice() -> None:
    z_s, z_t = samples(5, 6)
    weighted = mlld_loss(z_s, z_t, torch.tensor([2.0, 1, 1, 1, 1]), batch_size=None)
    rows = [0, 0, 1, 2, 3, 4]
    doubled = mlld_loss(z_s[rows], z_t[rows], torch.ones(6), batch_size=None, class_weight=0.0)
    classes = mlld_loss(
        z_s[rows], z_t[rows], torch.ones(6), batch_size=None, instance_weight=0.0, batch_weight=0.0
    )
    # Instance and batch level divide by the number of rows, the class level by that of classes.
    assert weighted.item() == pytest.approx((doubled * 6 / 5 + classes).item(), rel=1e-5)


def test_instance_level_is_kd_summed_over_the_temperatures() -> None:
    z_s, z_t = samples(9, 5)
    loss = mlld_loss(z_s, z_t, torch.ones(9), taus=(1.0, 3.0), batch_weight=0.0, class_weight=0.0)
    parts = sum(kd_loss(z_s, z_t, torch.ones(9), tau=tau) for tau in (1.0, 3.0))
    assert torch.allclose(loss, parts)


def test_module_passes_its_arguments_on() -> None:
    z_s, z_t = samples(9, 5)
    kwargs = dict(
        taus=[1, 2.0], instance_weight=0.5, batch_weight=2.0, class_weight=3.0, batch_size=7
    )
    module = MLLDLoss(**kwargs, loss_weight=0.25)
    labels = torch.zeros(9, dtype=torch.long)
    expected = 0.25 * mlld_loss(z_s, z_t, torch.ones(9), **kwargs)
    assert torch.equal(module(z_s, z_t, labels, torch.ones(9)), expected)
    assert 'taus=(1.0, 2.0), instance_weight=0.5' in repr(module)


@pytest.mark.parametrize('value', [[], (), '2', 4.0, None, {2.0}])
def test_taus_that_are_no_list(value: object) -> None:
    with pytest.raises(ConfigError, match=r'distillation\.taus must be a list of at least one'):
        MLLDLoss(taus=value)


@pytest.mark.parametrize('value', [0, -1.0, math.nan, '2', True])
def test_bad_tau_in_the_list(value: object) -> None:
    with pytest.raises(ConfigError, match=r'distillation\.taus\[1\] must be a finite number > 0'):
        MLLDLoss(taus=[2.0, value])


@pytest.mark.parametrize('key', ['instance_weight', 'batch_weight', 'class_weight', 'loss_weight'])
@pytest.mark.parametrize('value', [-1.0, math.inf, '1', None])
def test_bad_factor(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf'distillation\.{key} must be a finite number >= 0'):
        MLLDLoss(**{key: value})


@pytest.mark.parametrize('value', [0, -64, math.nan, '64'])
def test_bad_batch_size(value: object) -> None:
    with pytest.raises(ConfigError, match=r'distillation\.batch_size must be .* > 0, or None'):
        MLLDLoss(batch_size=value)
