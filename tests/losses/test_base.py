"""What a loss of one's own needs, with the base class and without it."""

from __future__ import annotations

from typing import Any

import helpers
import pytest
import torch
from mmdet.registry import MODELS
from torch import Tensor, nn

from calkd_det.errors import ConfigError
from calkd_det.knowledge import HeadAnswer, HeadSamples
from calkd_det.losses import ClassLoss
from calkd_det.losses.base import AvgFactor


class OwnLoss(ClassLoss):
    """Squared distances, divided as the head divides."""

    activation = 'sigmoid'

    def __init__(self, tau: float = 1.0, scale: float = 0.0, loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight, positive=dict(tau=tau), non_negative=dict(scale=scale))

    def compute(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor,
        weights: Tensor,
        avg_factor: AvgFactor,
    ) -> Tensor:
        distances = (student_logits - teacher_logits).square().sum(dim=1)
        return (weights * distances).sum() / avg_factor


class PlainLoss(nn.Module):
    """A loss that knows nothing of the base class, nor of the divisor."""

    activation = 'softmax'

    def __init__(self, tau: float = 1.0, loss_weight: float = 0.5) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(
        self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, weights: Tensor
    ) -> Tensor:
        return self.loss_weight * (student_logits - teacher_logits).square().mean()


INPUTS = (torch.ones(2, 3), torch.zeros(2, 3), torch.tensor([0, 3]), torch.ones(2))


def group(avg_factor: AvgFactor) -> HeadSamples:
    locations = torch.zeros(1, 2)
    return HeadSamples(INPUTS[0], *INPUTS[2:], locations, 'sigmoid', avg_factor=avg_factor)


def test_a_loss_with_the_base_class() -> None:
    loss = OwnLoss(tau=2, scale=0, loss_weight=0.5)
    assert (loss.tau, loss.scale, loss.loss_weight) == (2.0, 0.0, 0.5)
    assert repr(loss) == 'OwnLoss(tau=2.0, scale=0.0, loss_weight=0.5)'
    assert loss(*INPUTS, avg_factor=4.0) == 0.5 * 6 / 4
    assert group(torch.tensor(4.0)).compare(loss, HeadAnswer(INPUTS[1])) == 0.5 * 6 / 4


@pytest.mark.parametrize(
    ('argument', 'bad', 'wanted'),
    [('tau', 0, '> 0'), ('tau', None, '> 0'), ('scale', -1.0, '>= 0'), ('loss_weight', '1', '>=')],
)
def test_its_numbers_are_checked(argument: str, bad: Any, wanted: str) -> None:
    with pytest.raises(
        ConfigError, match=rf'distillation\.{argument} must be a finite number {wanted}'
    ):
        OwnLoss(**{argument: bad})


@pytest.mark.parametrize('activation', [None, 'relu'])
def test_a_class_without_activation_is_told_of_it(activation: str | None) -> None:
    cls = type('Unfinished', (OwnLoss,), {'activation': activation})
    with pytest.raises(
        ConfigError, match=r"Unfinished\.activation must be 'softmax' or 'sigmoid', but is"
    ):
        cls()


def test_computes_outside_of_autocast() -> None:
    class Product(OwnLoss):
        def compute(self, student_logits: Tensor, *args: Any) -> Tensor:
            return (student_logits @ student_logits.T).sum()

    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert (INPUTS[0] @ INPUTS[0].T).dtype == torch.bfloat16
        assert Product()(*INPUTS).dtype == torch.float32


@pytest.mark.parametrize('avg_factor', [None, 4.0])
def test_a_loss_of_four_arguments(avg_factor: float | None) -> None:
    assert group(avg_factor).compare(PlainLoss(), HeadAnswer(INPUTS[1])) == 0.5


@pytest.fixture
def own_type() -> str:
    MODELS.register_module(name='PlainLossOfATest', module=PlainLoss, force=True)
    yield 'PlainLossOfATest'
    MODELS.module_dict.pop('PlainLossOfATest')


def test_a_detector_distils_with_a_loss_of_four_arguments(
    own_type: str, teacher_config: Any, teacher: Any
) -> None:
    cfg = helpers.distilled_config(teacher_config, teacher[1], distillation=dict(type=own_type))
    detector = helpers.build(cfg)
    detector.init_weights()
    losses = helpers.loss(detector.train(), helpers.batch())
    assert losses['loss_kd'] > 0


def test_a_detector_passes_the_divisor_of_the_head_on(teacher_config: Any, teacher: Any) -> None:
    cfg = helpers.distilled_config(teacher_config, teacher[1])
    detector = helpers.build(cfg)
    detector.distillation = {'loss_kd': OwnLoss()}

    detector.teacher = lambda feats, samples: [HeadAnswer(INPUTS[1].clone())]
    assert detector.distillation_losses((), [group(4.0)])['loss_kd'] == 6 / 4
