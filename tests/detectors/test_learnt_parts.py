"""Learnt parts of losses are trained with the student, and no state dict of it holds them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import helpers
import pytest
import torch
from mmengine._strategy import DeepSpeedStrategy
from mmengine.config import ConfigDict
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import build_optim_wrapper
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

from calkd_det.detectors import learnt_parts
from calkd_det.errors import ConfigError

Teacher = tuple[nn.Module, Path]
CHANNELS = dict(student_channels=16, teacher_channels=16)
FEATURES = dict(
    mgd=dict(type='MGDLoss', loss_weight=1e-3, **CHANNELS),
    fgd=dict(type='FGDLoss', **CHANNELS),
)


def config(teacher_config: ConfigDict, teacher: Teacher, **losses: dict) -> ConfigDict:
    cfg = helpers.distilled_config(teacher_config, teacher[1])
    cfg.distillation = dict(cls=dict(type='KDLoss'), **(losses or FEATURES))
    return cfg


@pytest.fixture
def distilled(teacher_config: ConfigDict, teacher: Teacher) -> ConfigDict:
    return config(teacher_config, teacher)


def build(cfg: ConfigDict) -> nn.Module:
    detector = helpers.build(cfg)
    detector.init_weights()
    return detector.train()


@pytest.fixture
def detector(distilled: ConfigDict) -> nn.Module:
    return build(distilled)


def plain() -> nn.Module:
    return build(helpers.detector_config())


def train_steps(detector: nn.Module, steps: int = 2) -> None:
    wrapper = build_optim_wrapper(detector, dict(optimizer=dict(type='SGD', lr=0.01)))
    for step in range(steps):
        torch.manual_seed(step)
        detector.train_step(helpers.batch(seed=step), wrapper)


def test_they_are_parameters_but_in_no_state_dict(detector: nn.Module) -> None:
    names = {name for name, _ in detector.named_parameters() if name.startswith('learnt_parts.')}
    assert 'learnt_parts.loss_kd_mgd.levels.3.generator.0.weight' in names
    assert 'learnt_parts.loss_kd_fgd.levels.0.teacher_context.transform.0.bias' in names
    expected = plain().state_dict()
    for state in (detector.state_dict(), detector.state_dict(keep_vars=True)):
        assert list(state) == list(expected)
        assert state._metadata.keys() == expected._metadata.keys()
    nested = nn.ModuleDict(dict(student=detector)).state_dict()
    assert list(nested) == [f'student.{key}' for key in expected]


def test_a_plain_checkpoint_loads_strictly(detector: nn.Module) -> None:
    state = plain().state_dict()
    before = copy.deepcopy(list(detector.learnt_parts.parameters()))
    detector.load_state_dict(state, strict=True)
    load_state_dict(detector, state, strict=True)
    nested = nn.ModuleDict(dict(student=detector))
    nested.load_state_dict({f'student.{key}': value for key, value in state.items()}, strict=True)
    assert all(torch.equal(a, b) for a, b in zip(before, detector.learnt_parts.parameters()))


@pytest.mark.parametrize('load', [nn.Module.load_state_dict, load_state_dict])
def test_a_checkpoint_that_lacks_something_else_is_still_refused(
    load: Callable, detector: nn.Module
) -> None:
    state = plain().state_dict()
    del state['neck.fpn_convs.0.conv.weight']
    with pytest.raises(RuntimeError, match=r'neck\.fpn_convs\.0\.conv\.weight') as told:
        load(detector, state, strict=True)
    assert 'learnt_parts' not in str(told.value)


def test_its_own_weights_load_strictly_into_the_plain_detector(detector: nn.Module) -> None:
    train_steps(detector)
    other = plain()
    other.load_state_dict(detector.state_dict(), strict=True)
    data = helpers.batch()
    results = [each.eval().test_step(copy.deepcopy(data)) for each in (detector, other)]
    for ours, theirs in zip(*results):
        assert torch.equal(ours.pred_instances.bboxes, theirs.pred_instances.bboxes)


@pytest.mark.parametrize('init_cfg', [None, dict(type='Normal', layer='Conv2d', std=0.02)])
def test_initial_weights_and_random_numbers_are_the_plain_detectors(
    init_cfg: dict | None, distilled: ConfigDict
) -> None:
    drawn = []
    for cfg in (helpers.detector_config(), distilled):
        cfg.init_cfg = init_cfg
        detector = build(cfg)
        drawn.append((detector.state_dict(), torch.rand(3)))
    (state, numbers), (ours, our_numbers) = drawn
    assert torch.equal(numbers, our_numbers)
    for key, value in state.items():
        assert torch.equal(value, ours[key]), key


def test_a_step_samples_as_without_them(
    detector: nn.Module, teacher_config: ConfigDict, teacher: Teacher
) -> None:
    without = build(config(teacher_config, teacher, feat=dict(type='PKDLoss')))
    found = []
    for each in (detector, without):
        torch.manual_seed(5)
        losses = helpers.loss(each, helpers.batch())
        found.append((losses['loss_kd_cls'], losses['loss_cls'], torch.rand(3)))
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_they_are_trained(detector: nn.Module) -> None:
    before = copy.deepcopy(dict(detector.learnt_parts.named_parameters()))
    train_steps(detector)
    for name, value in detector.learnt_parts.named_parameters():
        # A softmax does not change with an offset of its logits.
        if 'place_logits' not in name and 'transform.0' not in name and 'transform.1' not in name:
            assert not torch.equal(value, before[name]), name
    assert detector.distillation['loss_kd_mgd'] is detector.learnt_parts['loss_kd_mgd']


def test_options_of_the_optimizer_reach_them(detector: nn.Module) -> None:
    wrapper = build_optim_wrapper(
        detector,
        dict(
            optimizer=dict(type='SGD', lr=0.01, weight_decay=0.1),
            paramwise_cfg=dict(custom_keys=dict(learnt_parts=dict(lr_mult=0.5))),
        ),
    )
    groups = {id(g['params'][0]): g['lr'] for g in wrapper.optimizer.param_groups}
    for name, parameter in detector.named_parameters():
        assert groups[id(parameter)] == (0.005 if name.startswith('learnt_parts') else 0.01)


@pytest.mark.parametrize('update_buffers', [False, True])
def test_an_average_of_the_weights_has_plain_keys(
    update_buffers: bool, detector: nn.Module
) -> None:
    average = ExponentialMovingAverage(detector, momentum=0.5, update_buffers=update_buffers)
    for _ in range(2):
        train_steps(detector, steps=1)
        average.update_parameters(detector)
    expected = plain()
    assert list(average.module.state_dict()) == list(expected.state_dict())
    expected.load_state_dict(average.module.state_dict(), strict=True)
    average.load_state_dict(average.state_dict(), strict=True)


@pytest.mark.parametrize('how', ['deepcopy', 'pickle'])
def test_a_copy_trains_its_own(how: str, detector: nn.Module) -> None:
    other = copy.deepcopy(detector) if how == 'deepcopy' else pickle.loads(pickle.dumps(detector))
    assert other.distillation['loss_kd_mgd'] is other.learnt_parts['loss_kd_mgd']
    before = copy.deepcopy(list(detector.learnt_parts.parameters()))
    train_steps(other)
    assert all(torch.equal(a, b) for a, b in zip(before, detector.learnt_parts.parameters()))
    train_steps(detector)
    for (name, value), ours in zip(other.named_parameters(), detector.parameters()):
        assert torch.equal(value, ours), name
    other.load_state_dict(plain().state_dict(), strict=True)


def test_they_move_and_cast_with_the_detector(detector: nn.Module) -> None:
    detector.to(torch.bfloat16)
    assert all(p.dtype == torch.bfloat16 for p in detector.learnt_parts.parameters())
    detector.to('meta')
    assert all(p.is_meta for p in detector.learnt_parts.parameters())


def test_a_loss_that_is_off_or_has_no_parts_adds_nothing(
    teacher_config: ConfigDict, teacher: Teacher
) -> None:
    off = dict(type='MGDLoss', loss_weight=0)
    for losses in (
        dict(feat=dict(type='PKDLoss')),
        dict(feat=dict(type='CWDLoss')),
        dict(feat=off),
    ):
        detector = build(config(teacher_config, teacher, **losses))
        assert detector.learnt_parts is None
        assert [n for n, _ in detector.named_parameters()] == [
            n for n, _ in plain().named_parameters()
        ]


@pytest.mark.parametrize(
    ('loss', 'told'),
    [
        (
            dict(type='MGDLoss'),
            r'write model\.distillation\.feat\.student_channels=16, '
            r'model\.distillation\.feat\.teacher_channels=16',
        ),
        (
            dict(type='FGDLoss', num_levels=6, **CHANNELS),
            r'write model\.distillation\.feat\.num_levels=5',
        ),
        (
            dict(type='CWDLoss', student_channels=96, num_levels=3),
            r'write model\.distillation\.feat\.student_channels=16',
        ),
    ],
)
def test_wrong_widths_are_told_before_the_first_step(
    loss: dict[str, Any], told: str, teacher_config: ConfigDict, teacher: Teacher
) -> None:
    detector = helpers.build(config(teacher_config, teacher, feat=loss))
    with pytest.raises(ConfigError, match=told):
        detector.init_weights()


def test_the_key_of_a_single_loss_is_told(teacher_config: ConfigDict, teacher: Teacher) -> None:
    cfg = helpers.distilled_config(teacher_config, teacher[1])
    cfg.distillation = dict(type='MGDLoss')
    with pytest.raises(ConfigError, match=r'write model\.distillation\.student_channels=16'):
        helpers.build(cfg).init_weights()


def test_a_teacher_of_another_width_is_learnt_from_through_a_convolution(tmp_path: Path) -> None:
    teacher_model = helpers.detector_config(base_channels=16)
    for part in (teacher_model.rpn_head, teacher_model.roi_head.bbox_head):
        part.in_channels = 24
    teacher_model.neck.out_channels = 24
    teacher_model.roi_head.bbox_roi_extractor.out_channels = 24
    helpers.save_teacher(tmp_path / 'teacher.pth', teacher_model)
    cfg = helpers.distilled_config(teacher_model, tmp_path / 'teacher.pth')
    widths = dict(student_channels=16, teacher_channels=24, num_levels=4)
    cfg.distillation = {
        name: dict(type=name, **widths) for name in ('CWDLoss', 'MGDLoss', 'FGDLoss')
    }
    detector = build(cfg)
    losses = helpers.loss(detector, helpers.batch())
    detector.parse_losses(losses)[0].backward()
    for name in cfg.distillation:
        assert losses[f'loss_kd_{name}'] > 0
    assert all(p.grad is not None for p in detector.learnt_parts.parameters())
    assert list(detector.state_dict()) == list(plain().state_dict())


def test_a_name_with_a_dot_is_refused(distilled: ConfigDict) -> None:
    distilled.distillation = {'p.2': FEATURES['mgd']}
    with pytest.raises(ConfigError, match=r"must have no dot, but one is 'p\.2'"):
        helpers.build(distilled)


def test_deepspeed_is_refused_as_it_would_not_save_them(
    detector: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its strategy calls no hook where it saves or loads a checkpoint."""
    strategy = object.__new__(DeepSpeedStrategy)
    runner = SimpleNamespace(strategy=strategy, hooks=[], register_hook=None)
    monkeypatch.setattr(learnt_parts, 'calling_runner', lambda: runner)
    with pytest.raises(ConfigError, match='has learnt parts, which DeepSpeedStrategy does not'):
        learnt_parts.register_learnt_parts_hook(detector.learnt_parts)
    runner.register_hook = runner.hooks.append
    learnt_parts.register_learnt_parts_hook(None)
    assert [type(hook) for hook in runner.hooks] == [learnt_parts.LearntPartsHook]
