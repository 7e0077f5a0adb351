"""The divisor that a tap records is the one by which mmdet divides the head's own loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import dense_cases
import helpers
import pytest
import torch
import two_stage_cases
from cases import Case
from mmdet.models.dense_heads import (
    atss_head,
    condinst_head,
    ddod_head,
    fcos_head,
    gfl_head,
    rtmdet_head,
    rtmdet_ins_head,
    yolox_head,
)
from torch import Tensor, nn

import calkd_det.taps.dense_head
import calkd_det.taps.yolox_head
from calkd_det.taps import HeadSamples, find_tap

TWO_STAGE = [*two_stage_cases.CASES, *two_stage_cases.READ]
DENSE = [*dense_cases.CASES, *dense_cases.READ]
# Where a divisor is averaged over processes: in mmdet's heads, and in the taps of two of them.
AVERAGING = (
    atss_head,
    condinst_head,
    ddod_head,
    fcos_head,
    gfl_head,
    rtmdet_head,
    rtmdet_ins_head,
    yolox_head,
    calkd_det.taps.dense_head,
    calkd_det.taps.yolox_head,
)


@dataclass(frozen=True)
class Divided:
    """One classifier's samples, and mmdet's loss of them before and after the division."""

    samples: HeadSamples
    total: Tensor
    loss: Tensor


def step(case: Case, **batch_options: Any) -> list[Divided]:
    detector = helpers.build(case.student)
    is_two_stage = hasattr(detector, 'roi_head')
    if not is_two_stage:
        detector.init_weights()
        for layer in getattr(detector.bbox_head, 'rtm_reg', ()):
            nn.init.constant_(layer.bias, 1)  # boxes of no size overlap with none
    heads = two_stage_cases.box_heads(detector) if is_two_stage else [detector.bbox_head]
    totals = [record_totals(head.loss_cls) for head in heads]
    torch.manual_seed(5)
    levels: list[Tensor] = []  # DDOD's own factors on the losses of the levels
    if case.name == 'DDOD':
        factors = detector.bbox_head.calc_reweight_factor
        detector.bbox_head.calc_reweight_factor = lambda labels: (
            levels.append(factors(labels)) or levels[-1]
        )
    with find_tap(detector, 'model').record(detector.train()) as samples:
        losses = helpers.loss(detector, case.batch(**{'num_boxes': 8, **batch_options}))
    divided = []
    for group, by_call in zip(samples, totals):
        loss = losses[f'{group.name}.loss_cls' if group.name else 'loss_cls']
        loss = sum(loss) if isinstance(loss, list) else loss
        # PISA and OHEM compute the loss before the one that counts, too.
        total = by_call[-1] if is_two_stage else sum(by_call)
        if levels:
            total = sum(factor * level for factor, level in zip(levels[0], by_call))
        divided.append(Divided(group, total, loss / group.factor))
    return divided


def record_totals(loss_cls: nn.Module) -> list[Tensor]:
    """Return a list that gets the sum over the samples of each call of a loss."""
    totals: list[Tensor] = []

    def on_call(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
        given = {**kwargs, 'avg_factor': None, 'reduction_override': 'sum'}
        totals.append(module.forward(*args, **given).detach())

    loss_cls.register_forward_hook(on_call, with_kwargs=True)
    return totals


every_case = pytest.mark.parametrize('case', [*TWO_STAGE, *DENSE], ids=lambda case: case.name)


@every_case
def test_the_heads_loss_is_its_sum_by_the_divisor(case: Case) -> None:
    for each in step(case):
        assert float(each.total) > 1e-3
        assert float(each.samples.avg_factor) != 1
        expected = each.total / each.samples.avg_factor
        torch.testing.assert_close(each.loss.detach(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize('case', DENSE, ids=lambda case: case.name)
def test_without_objects_it_is_no_less_than_mmdet_divides_by(case: Case) -> None:
    for each in step(case, num_boxes=0):
        avg_factor = float(each.samples.avg_factor)
        assert avg_factor >= 1
        if case.name != 'YOLOX':  # which has no loss of classes without objects
            torch.testing.assert_close(
                each.loss.detach(), sum([each.total]) / avg_factor, rtol=1e-5, atol=0
            )


@pytest.mark.parametrize('case', DENSE, ids=lambda case: case.name)
def test_it_is_averaged_over_processes_where_mmdet_averages(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if other processes had so many objects that the mean is three times as large."""
    (alone,) = step(case)
    for module in AVERAGING:
        monkeypatch.setattr(module, 'reduce_mean', lambda tensor: tensor * 3)
    (each,) = step(case)
    averages = type(helpers.build(case.student).bbox_head).__name__ not in LOCAL
    ratio = float(each.samples.avg_factor) / float(alone.samples.avg_factor)
    assert ratio == pytest.approx(3 if averages else 1)
    expected = each.total / each.samples.avg_factor
    torch.testing.assert_close(each.loss.detach(), expected, rtol=1e-5, atol=0)


# Heads that divide by what their own process counts.
LOCAL = {'RetinaHead', 'RetinaSepBNHead', 'SABLRetinaHead', 'FoveaHead'}


@pytest.mark.parametrize(
    ('name', 'count'),
    [
        ('RetinaNet', lambda samples: foreground(samples)),
        ('FoveaBox', lambda samples: foreground(samples) + 2),  # and the number of images
        ('YOLOX', lambda samples: foreground(samples)),
        ('Faster R-CNN', lambda samples: int((samples.weights > 0).sum())),
    ],
)
def test_what_it_counts(name: str, count: Any) -> None:
    (case,) = [case for case in (*TWO_STAGE, *DENSE) if case.name == name]
    (each,) = step(case)
    assert float(each.samples.avg_factor) == count(each.samples)


def foreground(samples: HeadSamples) -> int:
    return int((samples.labels < samples.logits.shape[1]).sum())


def test_rtmdet_divides_by_the_sum_of_its_metrics() -> None:
    (case,) = [case for case in DENSE if case.name == 'RTMDet']
    (each,) = step(case)
    assert 1 < float(each.samples.avg_factor) < foreground(each.samples)


def test_a_roi_head_without_rois_has_none() -> None:
    case = TWO_STAGE[0]
    detector = helpers.build(case.student)
    case.head.take_samples_away(detector)
    with find_tap(detector, 'model').record(detector.train()) as samples:
        helpers.loss(detector, case.batch(num_boxes=0))
    assert len(samples[0]) == 0
    assert samples[0].avg_factor is None
