"""Calibrators that raise low scores under sigmoid: allowed, and told."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import dense_cases
import helpers
import pytest
import torch

CASE = next(case for case in dense_cases.CASES if case.name == 'RetinaNet')


@pytest.mark.parametrize(
    ('calibrator', 'told'),
    [
        (dict(type='TemperatureScaling', temperature=1.5), True),
        (dict(type='TemperatureScaling', temperature=1.0), False),
        (dict(type='TemperatureScaling', temperature=0.5), False),
        (dict(type='PlattScaling', a=0.5), True),
        (dict(type='PlattScaling', a=0.5, b=-3.0), False),
        (dict(type='BetaScaling', a=0.5, b=2.0), True),
        (dict(type='BetaScaling', a=2.0, b=0.5), False),
    ],
)
def test_a_less_confident_dense_teacher_is_warned_of(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    calibrator: dict,
    told: bool,
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(
        'calkd_det.teachers.frozen_teacher.print_log',
        lambda text, logger, level=logging.INFO: (
            warnings.append(text) if level == logging.WARNING else None
        ),
    )
    checkpoint = tmp_path / 'teacher.pth'
    teacher = helpers.build(CASE.teacher)
    meta = dict(dataset_meta=dict(classes=helpers.CLASSES))
    torch.save(dict(meta=meta, state_dict=teacher.state_dict()), checkpoint)
    cfg = copy.deepcopy(CASE.student)
    cfg.type = CASE.detector
    cfg.teacher = dict(
        config=dict(model=CASE.teacher.to_dict()),
        checkpoint=str(checkpoint),
        calibrator=calibrator,
    )
    cfg.distillation = CASE.distillation
    detector = helpers.build(cfg)
    detector.dataset_meta = dict(classes=helpers.CLASSES)
    detector.init_weights()
    sentences = [text for text in warnings if 'makes the teacher less confident' in text]
    assert len(sentences) == told
    assert all('fit T with calkd calibrate' in text for text in sentences)
