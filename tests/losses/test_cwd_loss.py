"""CWD against its definition in float64, with the convolution and with standardised maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from feature_maps import as_float, make_maps, make_valid
from torch import Tensor

from calkd_det.errors import ConfigError
from calkd_det.losses import CWDLoss, cwd_loss


def softmax(values: np.ndarray) -> np.ndarray:
    exponentials = np.exp(values - values.max())
    return exponentials / exponentials.sum()


def by_definition(
    student: list[Tensor], teacher: list[Tensor], valid: list[Tensor] | None, tau: float
) -> float:
    total = 0.0
    for level, (own, other) in enumerate(zip(student, teacher)):
        images, channels = other.shape[:2]
        for n in range(images):
            places = slice(None) if valid is None else valid[level][n, 0]
            for d in range(channels):
                p_s, p_t = (softmax(x[n, d][places].numpy().ravel() / tau) for x in (own, other))
                total += tau**2 * np.sum(p_t * np.log(p_t / p_s)) / (images * channels)
    return total


@pytest.mark.parametrize('tau', [1.0, 4.0])
@pytest.mark.parametrize('masked', [False, True])
def test_is_its_definition(masked: bool, tau: float) -> None:
    student, teacher = make_maps(seed=1, scale=3), make_maps(seed=2)
    valid = make_valid() if masked else None
    value = cwd_loss(as_float(student), as_float(teacher), valid, tau=tau).item()
    assert value == pytest.approx(by_definition(student, teacher, valid, tau), rel=1e-5)
    module = CWDLoss(tau=tau, loss_weight=2.0)
    assert module(as_float(student), as_float(teacher), valid).item() == pytest.approx(
        2 * value, rel=1e-6
    )


@pytest.mark.parametrize('masked', [False, True])
def test_a_convolution_takes_the_student_to_the_width_of_the_teacher(masked: bool) -> None:
    student, teacher = make_maps(3, seed=1, scale=3), make_maps(5, seed=2)
    valid = make_valid() if masked else None
    loss = CWDLoss(loss_weight=1.0, num_levels=2, student_channels=3, teacher_channels=5)
    convolved = [
        torch.einsum('od,ndhw->nohw', conv.weight.detach().double()[:, :, 0, 0], maps)
        for conv, maps in zip(loss.levels, student)
    ]
    expected = by_definition(convolved, teacher, valid, 1.0)
    assert loss(as_float(student), as_float(teacher), valid).item() == pytest.approx(
        expected, rel=1e-5
    )
    assert [(name, tuple(p.shape)) for name, p in loss.named_parameters()] == [
        ('levels.0.weight', (5, 3, 1, 1)),
        ('levels.1.weight', (5, 3, 1, 1)),
    ]


@pytest.mark.parametrize('masked', [False, True])
def test_standardised_channels_are_compared_without_scale_and_offset(masked: bool) -> None:
    student, teacher = make_maps(seed=1, scale=30), make_maps(seed=2, scale=0.2)
    valid = make_valid() if masked else None

    def standardised(maps: list[Tensor]) -> list[Tensor]:
        result = []
        for level, x in enumerate(maps):
            places = x.new_ones(2, 6 // (level + 1), 8 // (level + 1)).bool()
            places = places if valid is None else valid[level][:, 0]
            values = x.movedim(1, 0)[:, places]
            mean, std = (f(dim=1)[None, :, None, None] for f in (values.mean, values.std))
            result.append((x - mean) / (std + 1e-6))
        return result

    loss = CWDLoss(loss_weight=1.0, standardise=True)
    expected = by_definition(standardised(student), standardised(teacher), valid, 1.0)
    value = loss(as_float(student), as_float(teacher), valid)
    assert value.item() == pytest.approx(expected, rel=1e-4)
    rescaled = [1000 * x - 5 for x in as_float(student)]
    assert torch.allclose(loss(rescaled, as_float(teacher), valid), value, rtol=1e-3)
    assert not list(loss.parameters())


def test_standardised_as_by_a_batchnorm_without_affine_and_running_statistics() -> None:
    student, teacher = as_float(make_maps(seed=1, scale=30)), as_float(make_maps(seed=2))
    norm = torch.nn.BatchNorm2d(5, affine=False, track_running_stats=False)
    expected = cwd_loss([norm(x) for x in student], [norm(x) for x in teacher])
    value = CWDLoss(loss_weight=1.0, standardise=True)(student, teacher)
    # The unbiased standard deviation of 24 places is 2 % smaller's inverse.
    assert torch.allclose(value, expected, rtol=0.05)


def test_where_no_convolution_is_needed_there_is_none() -> None:
    for loss in (CWDLoss(), CWDLoss(student_channels=96, loss_weight=0)):
        assert not list(loss.parameters())
        assert not loss.state_dict()


def test_a_convolution_needs_the_number_of_levels() -> None:
    with pytest.raises(ConfigError, match=r'distillation\.num_levels: CWDLoss .* an integer >= 1'):
        CWDLoss(student_channels=96)


def test_a_wrong_value_is_told() -> None:
    with pytest.raises(ConfigError, match=r'distillation\.standardise must be True or False'):
        CWDLoss(standardise='BN')
