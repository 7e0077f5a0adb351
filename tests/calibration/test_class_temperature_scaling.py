from __future__ import annotations

import json
from pathlib import Path

import helpers
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from torch import nn

from calkd_det.calibration import ClassTemperatureScaling, ForegroundBackgroundScaling
from calkd_det.errors import ConfigError

CLASSES = [ClassTemperatureScaling, ForegroundBackgroundScaling]


@pytest.mark.parametrize('cls', CLASSES)
def test_divides_each_log_probability_by_its_own(cls: type[ClassTemperatureScaling]) -> None:
    logits = torch.randn(5, 3).half()
    scaled = cls([0.5, 1.0, 2.0])(logits)
    assert scaled.dtype == torch.float32
    probs = logits.double().softmax(dim=1)
    expected = probs ** torch.tensor([2.0, 1.0, 0.5])
    expected /= expected.sum(dim=1, keepdim=True)
    torch.testing.assert_close(scaled.softmax(dim=1).double(), expected)


@pytest.mark.parametrize('cls', CLASSES)
def test_a_constant_added_to_all_logits_changes_nothing(cls: type[ClassTemperatureScaling]) -> None:
    logits = 4 * torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    calibrator = cls([0.5, 1.0, 2.0])
    plain, moved = (calibrator(z).softmax(dim=1) for z in (logits, logits + 30))
    torch.testing.assert_close(plain, moved, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ('name', 'expected'),
    [('ClassTemperatureScaling', [1.0, 2.0]), ('ForegroundBackgroundScaling', [3.0, 0.5])],
)
def test_each_reads_its_own_field_of_one_file(
    name: str, expected: list[float], tmp_path: Path
) -> None:
    path = tmp_path / 'fit.json'
    calibrator = MODELS.build(dict(type=name, temperatures=str(path)))
    fields = dict(
        class_temperatures=[1.0, 2.0], foreground_background_temperatures=[3.0, 0.5], temperature=9
    )
    path.write_text(json.dumps(fields))
    calibrator.prepare()
    assert calibrator.temperatures.tolist() == expected
    assert not calibrator.state_dict()


@pytest.mark.parametrize('value', [[], 1.5, [1.0, 0.0], [1.0, float('nan')], ['1'], None])
def test_bad_values_are_named(value: object) -> None:
    with pytest.raises(ConfigError, match=r'teacher\.calibrator\.temperatures'):
        ClassTemperatureScaling(value)


def test_a_file_for_another_teacher_stops_before_the_first_step(
    teacher_config: ConfigDict, teacher: tuple[nn.Module, Path]
) -> None:
    calibrator = dict(type='ClassTemperatureScaling', temperatures=[1.0] * 81)
    cfg = helpers.distilled_config(teacher_config, teacher[1], teacher=dict(calibrator=calibrator))
    detector = helpers.build(cfg)
    with pytest.raises(ConfigError, match='has 81 temperatures, but the teacher has 4 logits'):
        detector.init_weights()


def test_equal_temperatures_are_temperature_scaling(
    teacher_config: ConfigDict, teacher: tuple[nn.Module, Path]
) -> None:
    losses = []
    for calibrator in (
        dict(type='ClassTemperatureScaling', temperatures=[2.0] * 4),
        dict(type='TemperatureScaling', temperature=2.0),
    ):
        cfg = helpers.distilled_config(
            teacher_config, teacher[1], teacher=dict(calibrator=calibrator)
        )
        detector = helpers.build(cfg)
        detector.init_weights()
        torch.manual_seed(5)
        losses.append(helpers.loss(detector.train(), helpers.batch())['loss_kd'])
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
