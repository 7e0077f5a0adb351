"""From an epoch on the student trains alone: the step is the plain detector's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import helpers
import pytest
import torch
from mmdet.registry import HOOKS
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from torch import nn

from calkd_det.errors import ConfigError

LEARNT = dict(type='MGDLoss', loss_weight=1e-3, student_channels=16, teacher_channels=16)


def run(model: nn.Module, epoch: int, max_epochs: int = 4) -> SimpleNamespace:
    """The parts of mmengine's Runner that the hook uses."""
    logger = MMLogger.get_instance('stop_distillation')
    return SimpleNamespace(model=model, epoch=epoch, max_epochs=max_epochs, logger=logger)


def stop_hook(stop_epoch: Any = 2) -> Hook:
    return HOOKS.build(dict(type='StopDistillationHook', stop_epoch=stop_epoch))


def build(cfg: ConfigDict) -> nn.Module:
    torch.manual_seed(0)
    detector = helpers.build(cfg)
    detector.init_weights()
    return detector.train()


def losses_of(detector: nn.Module) -> dict[str, Any]:
    torch.manual_seed(1)
    return helpers.loss(detector, helpers.batch(seed=0))


def test_the_step_is_the_plain_detectors_from_then_on(
    teacher_config: ConfigDict, teacher: tuple[nn.Module, Path]
) -> None:
    detector = build(helpers.distilled_config(teacher_config, teacher[1]))
    hook = stop_hook()
    names = []
    for epoch in range(4):
        hook.before_train_epoch(run(detector, epoch))
        losses = losses_of(detector)
        names.append('loss_kd' in losses)
    assert names == [True, True, False, False]
    plain = losses_of(build(helpers.detector_config()))
    assert losses.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(losses[name], value, rtol=0, atol=0, msg=name)


def test_a_run_resumed_later_trains_the_student_alone(
    teacher_config: ConfigDict, teacher: tuple[nn.Module, Path]
) -> None:
    detector = build(helpers.distilled_config(teacher_config, teacher[1]))
    stop_hook().before_train_epoch(run(detector, epoch=3))
    assert 'loss_kd' not in losses_of(detector)


def test_learnt_parts_have_a_gradient_of_zero(
    teacher_config: ConfigDict, teacher: tuple[nn.Module, Path]
) -> None:
    cfg = helpers.distilled_config(teacher_config, teacher[1])
    cfg.distillation = dict(cls=dict(type='KDLoss'), feat=LEARNT)
    detector = build(cfg)
    stop_hook().before_train_epoch(run(detector, epoch=2))
    losses = losses_of(detector)
    assert losses['loss_kd_feat'] == 0
    assert 'loss_kd_cls' not in losses
    losses['loss_kd_feat'].backward()
    for parameter in detector.learnt_parts.parameters():
        assert not parameter.grad.any()


@pytest.mark.parametrize('value', [-1, 2.0, True, '280'])
def test_the_epoch_is_an_integer(value: Any) -> None:
    with pytest.raises(ConfigError, match='stop_epoch must be an integer >= 0'):
        stop_hook(value)


def test_a_plain_detector_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'model\.type is FasterRCNN'):
        stop_hook().before_train(run(build(helpers.detector_config()), epoch=0))


def test_an_epoch_that_never_comes_is_refused(
    teacher_config: ConfigDict, teacher: tuple[nn.Module, Path]
) -> None:
    detector = build(helpers.distilled_config(teacher_config, teacher[1]))
    stop_hook(3).before_train(run(detector, epoch=0))
    with pytest.raises(ConfigError, match='epochs of this training are 0 to 3'):
        stop_hook(4).before_train(run(detector, epoch=0))
