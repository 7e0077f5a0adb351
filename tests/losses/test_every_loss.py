"""What every loss of class logits promises, whichever it is."""

from __future__ import annotations

import doctest
import inspect
import math
import re
import sys
from pathlib import Path

import helpers
import pytest
import torch
from mmdet.registry import MODELS
from torch import Tensor, nn

import calkd_det.losses
from calkd_det.calibration import (
    ClassTemperatureScaling,
    ForegroundBackgroundScaling,
    TemperatureScaling,
)
from calkd_det.errors import ConfigError
from calkd_det.losses import ClassLoss

CLASSES = 6
DOCS = Path(__file__).resolve().parents[2] / 'docs' / 'losses.md'
PUBLIC = [getattr(calkd_det.losses, name) for name in calkd_det.losses.__all__]
LOSSES = [
    value
    for value in PUBLIC
    if inspect.isclass(value) and issubclass(value, ClassLoss) and value is not ClassLoss
]
# Arguments under which nothing of a loss is held constant for the gradient.
DIFFERENTIABLE = {'BinaryKDLoss': dict(weighting='all')}
HALVES = [torch.float16, torch.bfloat16]

every_loss = pytest.mark.parametrize('cls', LOSSES, ids=lambda cls: cls.__name__)


def logits_of(cls: type[nn.Module]) -> int:
    """Softmax heads have a logit for the background, sigmoid heads have none."""
    return CLASSES + 1 if cls.activation == 'softmax' else CLASSES


def samples(cls: type[nn.Module], n: int = 40, seed: int = 0) -> tuple[Tensor, ...]:
    """Student's and teacher's logits, labels with CLASSES as background, weights."""
    generator = torch.Generator().manual_seed(seed)
    z_s, z_t = torch.randn(2, n, logits_of(cls), generator=generator) * 3
    labels = torch.randint(CLASSES + 1, (n,), generator=generator)
    labels[::2] = CLASSES
    weights = torch.rand(n, generator=generator) + 0.5
    weights[::5] = 0
    return z_s, z_t, labels, weights


def test_all_are_found() -> None:
    assert {'KDLoss', 'DKDLoss', 'MLLDLoss', 'LogitStandardizationKDLoss'} <= {
        cls.__name__ for cls in LOSSES
    }
    assert calkd_det.losses.__all__ == sorted(calkd_det.losses.__all__)


@every_loss
def test_is_a_registered_module_with_what_the_detector_reads(cls: type[nn.Module]) -> None:
    loss = MODELS.build(dict(type=cls.__name__, loss_weight=0.25))
    assert type(loss) is cls
    assert loss.activation in ('softmax', 'sigmoid')
    assert loss.loss_weight == 0.25
    assert not loss.state_dict()
    assert not list(loss.parameters())
    assert list(inspect.signature(cls.forward).parameters) == [
        'self',
        'student_logits',
        'teacher_logits',
        'labels',
        'weights',
        'avg_factor',
    ]


@every_loss
def test_loss_weight_scales_and_may_be_zero(cls: type[nn.Module]) -> None:
    inputs = samples(cls)
    one = cls(loss_weight=1.0)(*inputs)
    assert one > 0
    assert torch.allclose(cls(loss_weight=0.25)(*inputs), one / 4)
    assert cls(loss_weight=0)(*inputs) == 0


@every_loss
def test_a_sentence_for_a_weight_that_is_no_number(cls: type[nn.Module]) -> None:
    with pytest.raises(ConfigError, match=r'distillation\.loss_weight must be a finite number'):
        cls(loss_weight='1')


@pytest.mark.parametrize(
    'cls', [cls for cls in LOSSES if cls.activation == 'softmax'], ids=lambda cls: cls.__name__
)
def test_a_mean_over_samples_is_divided_as_roi_heads_divide(cls: type[nn.Module]) -> None:
    inputs = samples(cls)
    # As mmdet's BBoxHead.loss computes its own.
    avg_factor = max(torch.sum(inputs[3] > 0).float().item(), 1.0)
    assert torch.equal(cls()(*inputs, avg_factor=avg_factor), cls()(*inputs))


@every_loss
def test_no_sample_gives_zero_with_a_graph(cls: type[nn.Module]) -> None:
    z = torch.zeros(0, logits_of(cls), requires_grad=True)
    loss = cls()(z, z.detach(), torch.zeros(0, dtype=torch.long), torch.zeros(0))
    loss.backward()
    assert loss.item() == 0
    assert z.grad.shape == z.shape


@every_loss
def test_no_weight_gives_zero_with_a_graph(cls: type[nn.Module]) -> None:
    z_s, z_t, labels, weights = samples(cls)
    z_s.requires_grad_()
    loss = cls()(z_s, z_t, labels, torch.zeros_like(weights))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(z_s.grad, torch.zeros_like(z_s))


@every_loss
def test_samples_without_weight_change_nothing(cls: type[nn.Module]) -> None:
    z_s, z_t, labels, weights = samples(cls)
    z_s.requires_grad_()
    loss = cls()(z_s, z_t, labels, weights)
    loss.backward()
    kept = weights > 0
    alone = cls()(z_s[kept], z_t[kept], labels[kept], weights[kept])
    assert torch.allclose(loss, alone, rtol=1e-5)
    assert not z_s.grad[~kept].any()
    assert z_s.grad[kept].any(dim=1).all()


@every_loss
def test_the_order_of_samples_does_not_matter(cls: type[nn.Module]) -> None:
    inputs = samples(cls)
    order = torch.randperm(len(inputs[0]), generator=torch.Generator().manual_seed(1))
    shuffled = cls()(*(value[order] for value in inputs))
    assert torch.allclose(shuffled, cls()(*inputs), rtol=1e-5)


@pytest.mark.parametrize(
    'cls', [cls for cls in LOSSES if cls.activation == 'softmax'], ids=lambda cls: cls.__name__
)
def test_only_differences_of_logits_count_under_softmax(cls: type[nn.Module]) -> None:
    z_s, z_t, labels, weights = samples(cls)
    shifted = cls()(z_s - 300, z_t + 200, labels, weights)
    assert torch.allclose(shifted, cls()(z_s, z_t, labels, weights), rtol=1e-4)


@every_loss
def test_no_gradient_flows_into_the_teacher(cls: type[nn.Module]) -> None:
    z_s, z_t, labels, weights = samples(cls)
    z_s.requires_grad_()
    z_t.requires_grad_()
    cls()(z_s, z_t, labels, weights).backward()
    assert z_t.grad is None
    assert z_s.grad.any()


@every_loss
@pytest.mark.parametrize('size', [0.1, 3.0, 100.0])
def test_zero_with_zero_gradient_where_student_is_teacher(
    cls: type[nn.Module], size: float
) -> None:
    z, _, labels, weights = samples(cls)
    z = (size * z).requires_grad_()
    loss = cls()(z, z.detach(), labels, weights)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert z.grad.abs().max() < 1e-6


@every_loss
def test_is_never_negative(cls: type[nn.Module]) -> None:
    for seed in range(20):
        assert cls()(*samples(cls, n=5, seed=seed)) >= 0


@every_loss
@pytest.mark.parametrize('label', [0, CLASSES])
def test_is_finite_for_extreme_logits(cls: type[nn.Module], label: int) -> None:
    k = logits_of(cls)
    extreme = torch.stack([1e4 * torch.eye(k)[0], -1e4 * torch.eye(k)[0], 1e4 * torch.ones(k)])
    extreme = torch.cat([extreme, 1e4 * torch.linspace(-1, 1, k)[None], torch.zeros(1, k)])
    z_s = extreme.repeat_interleave(5, dim=0).requires_grad_()
    z_t = extreme.repeat(5, 1)
    loss = cls()(z_s, z_t, torch.full((25,), label), torch.ones(25))
    loss.backward()
    assert loss.isfinite()
    assert z_s.grad.isfinite().all()


@every_loss
def test_gradient_is_the_slope_of_the_loss(cls: type[nn.Module]) -> None:
    z_s, z_t, labels, weights = samples(cls)
    z_s.requires_grad_()
    loss = cls(**DIFFERENTIABLE.get(cls.__name__, {}))
    (gradient,) = torch.autograd.grad(loss(z_s, z_t, labels, weights), z_s)
    # Along a wrong gradient the loss would rise by less than the gradient's length.
    direction, step = gradient / gradient.norm(), 0.02
    above, below = (
        loss(z_s.detach() + sign * step * direction, z_t, labels, weights) for sign in (1, -1)
    )
    slope = (above - below).item() / (2 * step)
    assert slope == pytest.approx(gradient.norm().item(), rel=1e-2)


@every_loss
@pytest.mark.parametrize('dtype', HALVES, ids=str)
def test_half_precision_logits_are_computed_in_float32(
    cls: type[nn.Module], dtype: torch.dtype
) -> None:
    z_s, z_t, labels, weights = samples(cls)
    z_s, z_t = (100 * z_s).to(dtype).requires_grad_(), (100 * z_t).to(dtype)
    loss = cls()(z_s, z_t, labels, weights)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.equal(loss, cls()(z_s.float(), z_t.float(), labels, weights))
    assert z_s.grad.dtype == dtype
    assert z_s.grad.isfinite().all()


@every_loss
@pytest.mark.parametrize('dtype', HALVES, ids=str)
def test_is_float32_whatever_autocast_says(cls: type[nn.Module], dtype: torch.dtype) -> None:
    z_s, z_t, labels, weights = samples(cls)
    z_s.requires_grad_()
    expected = cls()(z_s, z_t, labels, weights)
    with helpers.cpu_autocast(dtype):
        loss = cls()(z_s, z_t, labels, weights)
    assert torch.equal(loss, expected)
    gradients = [torch.autograd.grad(value, z_s)[0] for value in (loss, expected)]
    assert torch.equal(*gradients)


CALIBRATORS = {
    'TemperatureScaling': lambda k: TemperatureScaling(1.5),
    'ClassTemperatureScaling': lambda k: ClassTemperatureScaling([1 + 0.1 * i for i in range(k)]),
    'ForegroundBackgroundScaling': lambda k: ForegroundBackgroundScaling([2.0] * (k - 1) + [0.8]),
}


@pytest.mark.parametrize(
    ('cls', 'name'),
    [
        pytest.param(cls, name, id=f'{cls.__name__}-{name}')
        for cls in LOSSES
        for name in CALIBRATORS
        # A sigmoid head has no background logit.
        if cls.activation == 'softmax' or name != 'ForegroundBackgroundScaling'
    ],
)
@pytest.mark.parametrize('dtype', [torch.float32, *HALVES], ids=str)
def test_works_under_any_calibrator(cls: type[nn.Module], name: str, dtype: torch.dtype) -> None:
    calibrator = CALIBRATORS[name](logits_of(cls))
    z_s, z_t, labels, weights = samples(cls)
    z_s, z_t = z_s.to(dtype).requires_grad_(), z_t.to(dtype)
    loss = cls()(z_s, calibrator(z_t), labels, weights)
    loss.backward()
    assert math.isfinite(loss.item())
    assert loss > 0
    assert z_s.grad.isfinite().all()
    same = cls()(calibrator(z_t), calibrator(z_t), labels, weights)
    assert same.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    'name', sorted({cls.__module__ for cls in LOSSES} | {'calkd_det.losses.averaging'})
)
def test_examples_in_the_docstrings_hold(name: str) -> None:
    result = doctest.testmod(sys.modules[name])
    assert result.attempted > 0
    assert result.failed == 0


@every_loss
def test_the_page_tells_of_it_with_a_config_that_builds(cls: type[nn.Module]) -> None:
    page = DOCS.read_text(encoding='utf-8')
    section = page.split(f'\n## {cls.__name__}\n')[1].split('\n## ')[0]
    (snippet,) = re.findall(r'```python\ndistillation=(.*?)```', section, flags=re.DOTALL)
    assert type(MODELS.build(eval(snippet))) is cls
