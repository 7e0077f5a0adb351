"""Losses that compute slopes along with their value: against autograd on the formula in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from feature_maps import as_float, make_maps, make_valid
from torch import Tensor

from calkd_det.losses import chunks, cwd_loss, pkd_loss

Loss = Callable[..., Tensor]


# Of 5 channels and at most 96 places: a channel each, 3 channels (not a divisor of 5), all.
@pytest.fixture(params=[1, 300, 2**20], autouse=True)
def chunk_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, 'CHUNK_ON_CPU', request.param)


def plain_pkd(student: list[Tensor], teacher: list[Tensor], valid: list[Tensor]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for own, other, mask in zip(student, teacher, valid):
        for d in range(own.shape[1]):
            x, y = ((v - v.mean()) / (v.std() + 1e-6) for v in (own[:, d][mask], other[:, d][mask]))
            total = total + (x - y).square().mean() / (2 * own.shape[1])
    return total


def plain_cwd(student: list[Tensor], teacher: list[Tensor], valid: list[Tensor]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for own, other, mask in zip(student, teacher, valid):
        for n in range(len(own)):
            x, y = (v[n][:, mask[n]].log_softmax(dim=1) for v in (own, other))
            kl = F.kl_div(x, y, log_target=True, reduction='sum')
            total = total + kl / (len(own) * own.shape[1])
    return total


def slopes(loss: Loss, student: list[Tensor], *others: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    student = [maps.detach().requires_grad_() for maps in student]
    value = 3 * loss(student, *others)
    return value.detach(), list(torch.autograd.grad(value, student))


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize(('loss', 'plain'), [(pkd_loss, plain_pkd), (cwd_loss, plain_cwd)])
def test_value_and_slopes_are_those_of_the_formula(loss: Loss, plain: Loss, masked: bool) -> None:
    student, teacher = make_maps(seed=1, scale=3), make_maps(seed=2, scale=0.2)
    everywhere = [torch.ones_like(maps[:, 0], dtype=torch.bool) for maps in student]
    valid = make_valid() if masked else None
    places = [mask[:, 0] for mask in valid] if masked else everywhere
    expected, expected_slopes = slopes(plain, student, teacher, places)
    value, found = slopes(loss, as_float(student), as_float(teacher), valid)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)
    for own, other in zip(found, expected_slopes):
        torch.testing.assert_close(own.double(), other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('loss', [pkd_loss, cwd_loss])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_maps_of_half_precision_have_slopes_of_their_dtype(loss: Loss, dtype: torch.dtype) -> None:
    student, teacher = ([maps.to(dtype) for maps in make_maps(seed=seed)] for seed in (1, 2))
    value, found = slopes(loss, student, teacher)
    expected, expected_slopes = slopes(loss, as_float(student), as_float(teacher))
    assert torch.equal(value, expected)
    for own, other in zip(found, expected_slopes):
        assert torch.equal(own, other.to(dtype))


@pytest.mark.parametrize('loss', [pkd_loss, cwd_loss])
def test_a_second_derivative_is_refused(loss: Loss) -> None:
    student, teacher = (as_float(make_maps(seed=seed)) for seed in (1, 2))
    student[0].requires_grad_()
    with pytest.raises(RuntimeError, match='can be differentiated once only'):
        torch.autograd.grad(loss(student, teacher), student[0], create_graph=True)


@pytest.mark.parametrize('loss', [pkd_loss, cwd_loss])
def test_neither_side_is_changed(loss: Loss) -> None:
    student, teacher = (as_float(make_maps(seed=seed)) for seed in (1, 2))
    kept = [maps.clone() for maps in (*student, *teacher)]
    loss(student, teacher, make_valid())
    assert all(map(torch.equal, kept, (*student, *teacher)))
