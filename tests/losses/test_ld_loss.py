from __future__ import annotations

import math
import sys

import pytest
import torch
from mmdet.models.losses import KnowledgeDistillationKLDivLoss
from mmdet.registry import MODELS
from torch import Tensor

from calkd_det.errors import ConfigError
from calkd_det.knowledge import BoxPredictions, HeadAnswer, HeadSamples
from calkd_det.losses import LDLoss, ld_loss


def reference(z_s: Tensor, z_t: Tensor, weights: Tensor, tau: float) -> float:
    """The definition, in float64, a side and a bin at a time."""
    total = 0.0
    for own, other, weight in zip(*(x.double().tolist() for x in (z_s, z_t, weights))):
        for side_s, side_t in zip(own, other):
            sums = [sum(math.exp(z / tau) for z in side) for side in (side_s, side_t)]
            for s, t in zip(side_s, side_t):
                q, p = math.exp(s / tau) / sums[0], math.exp(t / tau) / sums[1]
                total += weight * p * math.log(p / q) / len(side_s) / 4
    return tau**2 * total / max(1.0, float(weights.double().sum()))


def inputs(count: int, bins: int = 17) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    z_s, z_t = torch.randn(2, count, 4, bins, generator=generator) * 3
    weights = torch.rand(count, generator=generator)
    weights[1::3] = 0
    return z_s, z_t, weights


@pytest.mark.parametrize('tau', [1.0, 10.0])
@pytest.mark.parametrize('count', [1, 3, 40])
@pytest.mark.parametrize('bins', [8, 17])
def test_equals_its_definition(count: int, tau: float, bins: int) -> None:
    given = inputs(count, bins)
    expected = reference(*given, tau)
    loss = ld_loss(*given, tau=tau)
    assert expected > 0
    assert loss.dtype == torch.float32
    # The divergence at tau = 10 is a small difference of logarithms in float32.
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_equals_mmdets_loss_of_its_ld_head() -> None:
    z_s, z_t, weights = inputs(40)
    theirs = KnowledgeDistillationKLDivLoss(loss_weight=1.0, T=10)(
        z_s.reshape(-1, 17),
        z_t.reshape(-1, 17),
        weight=weights[:, None].expand(-1, 4).reshape(-1),
        avg_factor=4.0,
    )
    assert ld_loss(z_s, z_t, weights).item() == pytest.approx(
        theirs.item() / weights.sum().item(), rel=1e-4
    )


def test_no_loss_and_no_gradient_where_both_agree() -> None:
    z, _, weights = inputs(40)
    student = z.clone().requires_grad_()
    loss = ld_loss(student, z, weights)
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert student.grad.abs().max() < 1e-6


def test_no_sample_gives_zero_with_a_graph() -> None:
    student = torch.zeros(0, 4, 17, requires_grad=True)
    loss = ld_loss(student, torch.zeros(0, 4, 17), torch.zeros(0))
    assert loss == 0
    loss.backward()
    assert student.grad.shape == student.shape


def test_divides_by_the_mean_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs(40)
    own_sum = float(given[2].sum())
    monkeypatch.setattr(
        sys.modules[ld_loss.__module__], 'reduce_mean', lambda total: (total + 4) / 2
    )
    expected = reference(*given, 10.0) * own_sum / ((own_sum + 4) / 2)
    assert ld_loss(*given).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_weights_are_the_heads_times_the_students_highest_score(dtype: torch.dtype) -> None:
    z_s, z_t, _ = inputs(3)
    logits = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits.requires_grad_()
    rows = torch.tensor([2, 4, 5])
    labels = torch.tensor([5, 5, 0, 5, 2, 1])
    weights = torch.tensor([1.0, 1.0, 0.5, 1.0, 1.0, 2.0])
    own, other = (BoxPredictions(rows, torch.zeros(3, 4), distribution=z) for z in (z_s, z_t))
    z_s.requires_grad_()
    piece = HeadSamples(logits[0], labels, weights, torch.zeros(1, 2), 'sigmoid', boxes=own)
    scores = logits[0].detach().double().sigmoid()[rows].amax(dim=1)
    expected = 0.25 * reference(z_s.detach(), z_t, weights[rows] * scores, 10.0)
    with torch.autocast('cpu', torch.bfloat16):
        loss = piece.compare(MODELS.build(dict(type='LDLoss')), HeadAnswer(logits[1], other))
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert logits.grad is None
    assert z_s.grad.any()


@pytest.mark.parametrize(
    ('bins', 'message'),
    [
        ((None, 17), 'head of the student predicts none.*BoxKDLoss'),
        ((17, None), 'head of the teacher predicts none.*BoxKDLoss'),
        ((17, 9), '17 bins.*the teacher 9. Set reg_max=8'),
    ],
)
def test_heads_that_it_cannot_compare_are_refused(bins: tuple, message: str) -> None:
    LDLoss().check_bins(17, 17)
    with pytest.raises(ConfigError, match=message):
        LDLoss().check_bins(*bins)


def test_a_tau_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'distillation\.tau'):
        LDLoss(tau=0)
