"""A CalKD detector that trains without a teacher says so, once, and only when it trains."""

from __future__ import annotations

from pathlib import Path

import coloured_shapes
import helpers
import pytest
from mmengine.config import Config, ConfigDict
from torch import nn

from calkd_det.detectors import training_alone

TEACHER = dict(config=dict(model=helpers.detector_config().to_dict()), checkpoint='none.pth')
FORGOTTEN = [{}, dict(teacher=TEACHER)]
CHOSEN = [
    dict(distillation=None),
    dict(teacher=None),
    dict(teacher=None, distillation=None),
    dict(teacher=TEACHER, distillation=None),
]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []

    def note(text: str, level: int = 20, **kwargs: object) -> None:
        lines.append((text, {20: 'info', 30: 'warning'}[level]))

    monkeypatch.setattr(training_alone, 'print_log', note)
    return lines


def student(keys: dict) -> ConfigDict:
    return helpers.detector_config('CalKDFasterRCNN', **keys)


@pytest.mark.parametrize('keys', FORGOTTEN)
def test_a_forgotten_key_is_a_warning_once(
    keys: dict, told: list[tuple[str, str]], tmp_path: Path
) -> None:
    helpers.build(student(keys))
    assert told == []
    coloured_shapes.train(student(keys), tmp_path, num_images=8)
    ((text, level),) = told
    assert level == 'warning'
    missing = 'model.distillation' if keys else 'model.teacher and no model.distillation'
    assert f'CalKDFasterRCNN has no {missing}: no teacher is loaded, the student trains' in text
    assert ('teacher=dict(config=..., checkpoint=...)' in text) == (not keys)
    assert "distillation=dict(type='KDLoss'))" in text


@pytest.mark.parametrize('keys', CHOSEN)
def test_none_is_a_choice(keys: dict, told: list[tuple[str, str]]) -> None:
    model = helpers.build(student(keys))
    for _ in range(2):
        model.init_weights()
    ((text, level),) = told
    assert level == 'info'
    assert 'the student trains alone' in text


@pytest.mark.parametrize(
    ('beside', 'expected'),
    [
        (dict(distillation=dict(type='KDLoss')), "has 'distillation' beside model"),
        (
            dict(distillation=dict(type='KDLoss'), teacher=TEACHER),
            "has 'teacher' and 'distillation' beside model: they belong into it, "
            'model=dict(teacher=dict(...), distillation=dict(...))',
        ),
    ],
)
def test_keys_beside_the_model(
    beside: dict, expected: str, told: list[tuple[str, str]], tmp_path: Path
) -> None:
    coloured_shapes.train(student({}), tmp_path, num_images=8, cfg=Config(beside))
    ((text, level),) = told
    assert level == 'warning'
    assert expected in text


def test_a_loop_of_ones_own(told: list[tuple[str, str]]) -> None:
    model = helpers.build(student({})).train()
    for _ in range(2):
        helpers.loss(model, helpers.batch())
    assert len(told) == 1


def test_one_that_is_tested_or_measured_says_nothing(told: list[tuple[str, str]]) -> None:
    model = helpers.build(student({})).eval()
    model.test_step(helpers.batch())
    helpers.loss(model, helpers.batch())  # as a calibration does
    assert told == []


def test_distillation_says_nothing(
    told: list[tuple[str, str]], teacher_config: ConfigDict, teacher: tuple[nn.Module, Path]
) -> None:
    cfg = helpers.distilled_config(teacher_config, teacher[1])
    model = helpers.build(cfg)
    model.init_weights()
    helpers.loss(model.train(), helpers.batch())
    cfg.distillation.loss_weight = 0  # which is told when it is built
    helpers.build(cfg).init_weights()
    assert told == []
