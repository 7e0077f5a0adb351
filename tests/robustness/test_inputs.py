"""Images of other channels, and images that the pipeline normalises, in whole runs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from mmcv.transforms import Normalize
from mmengine.config import ConfigDict
from small_runs import RandomImages, run
from torch import nn

from calkd_det.errors import ConfigError
from calkd_det.teachers import folding, pipelines

NORM = dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], to_rgb=False)


def logged(module: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    messages: list[str] = []
    monkeypatch.setattr(module, 'print_log', lambda message, **kwargs: messages.append(message))
    return messages


def test_a_run_looks_into_the_pipeline_that_it_trains_on(
    teacher_config: ConfigDict,
    teacher: tuple[nn.Module, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    warned = logged(pipelines, monkeypatch)
    cfg = helpers.distilled_config(teacher_config, teacher[1])
    run(cfg, tmp_path / 'alike', epochs=1)
    assert not warned
    monkeypatch.setattr(RandomImages, 'pipeline', [Normalize(**NORM)], raising=False)
    run(cfg, tmp_path / 'differs', epochs=1)
    assert len(warned) == 1


def with_channels(cfg: ConfigDict, channels: int) -> ConfigDict:
    cfg = copy.deepcopy(cfg)
    cfg.backbone.in_channels = channels
    cfg.data_preprocessor.update(mean=[118.0], std=[40.0], bgr_to_rgb=False)
    return cfg


def repeat_channels(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    get = RandomImages.__getitem__

    def get_channels(self: RandomImages, index: int) -> dict[str, Any]:
        data = get(self, index)
        return {**data, 'inputs': torch.cat([data['inputs']] * 2)[:channels]}

    monkeypatch.setattr(RandomImages, '__getitem__', get_channels)


@pytest.mark.parametrize('channels', [1, 4])
def test_detectors_of_one_and_four_channels_are_students_and_teachers(
    channels: int,
    teacher_config: ConfigDict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    warned = logged(folding, monkeypatch)
    repeat_channels(channels, monkeypatch)
    model = with_channels(teacher_config, channels)
    weights = helpers.build(model, seed=1).state_dict()
    torch.save(dict(state_dict=weights), tmp_path / 'teacher.pth')
    student = with_channels(helpers.distilled_config(model, tmp_path / 'teacher.pth'), channels)
    runner = run(student, tmp_path / 'work', epochs=1)
    assert runner.message_hub.get_scalar('train/loss_kd').current() > 0
    network = runner.model.teacher.network
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert not warned


def test_a_student_of_other_channels_than_its_teacher_never_trains(
    teacher_config: ConfigDict,
    teacher: tuple[nn.Module, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    repeat_channels(4, monkeypatch)
    student = with_channels(helpers.distilled_config(teacher_config, teacher[1]), 4)
    message = r'model\.backbone takes images of 4 channels, the backbone of model\.teacher\.config'
    with pytest.raises(ConfigError, match=message):
        run(student, tmp_path / 'work', epochs=1)
    assert not list((tmp_path / 'work').rglob('*.pth'))
