"""Logits that are not finite are reported once and do no harm; extreme ones stay finite."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from small_runs import log_of, run
from torch import nn

from calkd_det.detectors import finite_watch
from calkd_det.knowledge import HeadAnswer, HeadSamples
from calkd_det.losses.kd_loss import kd_loss

Teacher = tuple[nn.Module, Path]


class Poison(Hook):
    """Spoils a weight of the teacher's or of the student's classifier before an iteration."""

    def __init__(self, whose: str, value: float, iteration: int) -> None:
        self.whose, self.value, self.iteration = whose, value, iteration

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if runner.iter + 1 == self.iteration:
            model = runner.model
            detector = model.teacher.network.detector if self.whose == 'teacher' else model
            detector.roi_head.bbox_head.fc_cls.bias.data[0] = self.value


@pytest.mark.parametrize('whose', ['teacher', 'student'])
@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_is_told_once_with_iteration_and_origin(
    whose: str, value: float, teacher_config: ConfigDict, teacher: Teacher, tmp_path: Path
) -> None:
    cfg = helpers.distilled_config(teacher_config, teacher[1])
    runner = run(cfg, tmp_path / 'work', epochs=3, hooks=[Poison(whose, value, iteration=3)])
    assert runner.iter == 6
    told = [
        line for line in log_of(tmp_path / 'work').splitlines() if 'are NaN or infinite' in line
    ]
    assert len(told) == 1
    assert 'WARNING' in told[0]
    assert f'Iteration 3: class logits of the {whose} are' in told[0]
    weights_are_finite = all(p.isfinite().all() for p in runner.model.parameters())
    assert weights_are_finite == (whose == 'teacher')


def test_the_plain_detector_goes_on_as_well(tmp_path: Path) -> None:
    poison = Poison('student', float('nan'), iteration=3)
    assert run(helpers.detector_config(), tmp_path / 'work', epochs=3, hooks=[poison]).iter == 6


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(finite_watch, 'print_log', lambda text, **kwargs: lines.append(text))
    return lines


def test_a_loop_without_a_runner_is_told_too(
    told: list[str], teacher_config: ConfigDict, teacher: Teacher
) -> None:
    detector = helpers.build(helpers.distilled_config(teacher_config, teacher[1])).train()
    wrapper = build_optim_wrapper(detector, dict(optimizer=dict(type='SGD', lr=0.0)))
    finite_watch.MessageHub._instance_dict.clear()
    for iteration in range(1, 6):
        if iteration == 3:
            detector.teacher.network.detector.roi_head.bbox_head.fc_cls.bias[1] = torch.nan
        detector.train_step(helpers.batch(), wrapper)
        assert len(told) == (iteration > 3)
    assert told[0].startswith('Iteration 3: class logits of the teacher are NaN or infinite')
    # A copy tells for itself.
    for copied in (copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
        assert not copied._finite_watch._reported


def test_finite_logits_are_not_told(
    told: list[str], teacher_config: ConfigDict, teacher: Teacher
) -> None:
    detector = helpers.build(helpers.distilled_config(teacher_config, teacher[1])).train()
    for boxes in (3, 0, 3):
        helpers.loss(detector, helpers.batch(num_boxes=boxes))
    detector.roi_head.bbox_sampler.num = 0
    for _ in range(2):
        helpers.loss(detector, helpers.batch(num_boxes=0))
    assert told == []


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_samples_without_finite_teacher_logits_are_as_if_not_sampled(value: float) -> None:
    logits = torch.randn(8, 4, requires_grad=True)
    samples = HeadSamples(
        logits=logits,
        labels=torch.arange(8) % 4,
        weights=torch.rand(8) + 0.5,
        locations=torch.zeros(8, 5),
        activation='softmax',
    )
    teacher = torch.randn(8, 4)
    spoilt = teacher.clone()
    spoilt[2, 1], spoilt[5] = value, value
    group, answer = samples.without_non_finite(HeadAnswer(spoilt))
    loss = kd_loss(group.logits, answer.logits, group.weights)
    (grad,) = torch.autograd.grad(loss, logits)
    kept = torch.tensor([0, 1, 3, 4, 6, 7])
    expected = kd_loss(logits[kept], teacher[kept], samples.weights[kept])
    (expected_grad,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grad, expected_grad)
    assert not grad[[2, 5]].any()

    unchanged, same = samples.without_non_finite(HeadAnswer(teacher.clone()))
    assert torch.equal(unchanged.weights, samples.weights)
    assert torch.equal(same.logits, teacher)


@pytest.mark.parametrize('tau', [0.1, 1.0, 20.0])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_extreme_logits_give_finite_losses_and_gradients(tau: float, dtype: torch.dtype) -> None:
    extreme = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [-1e4, -1e4, -1e4]], dtype=dtype)
    for teacher in (extreme, extreme.flip(0), torch.zeros_like(extreme)):
        student = extreme.clone().requires_grad_()
        value = kd_loss(student, teacher / 1.5, torch.ones(3), tau=tau)
        value.backward()
        assert value.isfinite()
        assert value >= 0
        assert student.grad.isfinite().all()


def test_largest_float16_logits_do_not_overflow(
    teacher_config: ConfigDict, teacher: Teacher
) -> None:
    detector = helpers.build(
        helpers.distilled_config(
            teacher_config,
            teacher[1],
            teacher=dict(calibrator=dict(type='TemperatureScaling', temperature=0.05)),
        )
    )
    detector.init_weights()
    largest = torch.full((2, 4), torch.finfo(torch.float16).max, dtype=torch.float16)
    largest[:, 1] *= -1
    calibrated = detector.teacher.network.calibrator(largest)
    assert calibrated.isfinite().all()
    assert kd_loss(largest.flip(1), calibrated, torch.ones(2)).isfinite()
