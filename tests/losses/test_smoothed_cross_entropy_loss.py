"""The smoothed cross-entropy against its definition, and against mmdet's plain one."""

from __future__ import annotations

import pytest
import torch
from mmdet.models.losses import CrossEntropyLoss

from calkd_det.errors import ConfigError
from calkd_det.losses.smoothed_cross_entropy_loss import SmoothedCrossEntropyLoss


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    return logits, torch.tensor([0, 1, 2, 3, 3, 0]), torch.tensor([1.0, 1, 0, 1, 1, 0.5])


def test_without_smoothing_it_is_mmdets(batch: tuple) -> None:
    logits, labels, weights = batch
    ours, theirs = SmoothedCrossEntropyLoss(0.0, loss_weight=2.0), CrossEntropyLoss(loss_weight=2.0)
    for avg_factor in (None, 5.0):
        assert ours(logits, labels, weights, avg_factor=avg_factor) == pytest.approx(
            theirs(logits, labels, weights, avg_factor=avg_factor)
        )


def test_it_is_the_cross_entropy_of_smoothed_labels(batch: tuple) -> None:
    logits, labels, weights = batch
    target = 0.8 * torch.eye(4, dtype=torch.float64)[labels] + 0.2 / 4
    expected = -(target * logits.log_softmax(dim=1)).sum(dim=1)
    loss = SmoothedCrossEntropyLoss(0.2)
    assert loss(logits, labels, weights, avg_factor=3.0) == pytest.approx(
        float((expected * weights).sum() / 3)
    )


@pytest.mark.parametrize('smoothing', [-0.1, 1.0, 'much'])
def test_a_wrong_smoothing_is_named(smoothing: object) -> None:
    with pytest.raises(ConfigError, match=r'loss_cls\.smoothing must be'):
        SmoothedCrossEntropyLoss(smoothing)
