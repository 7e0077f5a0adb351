"""The benchmark of a detection transformer's step: what is taught is timed, and the matching."""

from __future__ import annotations

from pathlib import Path

import pytest
import query_cases
import torch
from mmengine.config import Config

from calkd_det.commands.benchmark import ways
from calkd_det.commands.benchmark.subject import Subject, with_random_teacher
from calkd_det.commands.benchmark.ways import CALIBRATION, DEFAULT, MATCHING, STEPS, TEACHER
from calkd_det.taps.query_matching import match_queries

LOSSES = dict(cls=dict(type='BinaryKDLoss'), bbox=dict(type='BoxKDLoss'))


def make_subject(folder: Path, **teacher_options: object) -> Subject:
    model = query_cases.detector_config('DINO')
    model.type = 'CalKDDINO'
    model.teacher = dict(
        config=dict(model=query_cases.detector_config('DINO', width=16).to_dict()),
        checkpoint='none.pth',
        **teacher_options,
    )
    model.distillation = LOSSES
    cfg = Config(dict(model=model, optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1))))
    return Subject(
        with_random_teacher(cfg, folder / 'teacher.pth'), (64, 64), 2, torch.device('cpu')
    )


@pytest.mark.parametrize(
    ('options', 'matchings'), [({}, 1), (dict(denoising=True, stages=[0, 1]), 2)], ids=['1', '2']
)
def test_the_matching_of_the_layers_that_are_taught_is_a_part(
    options: dict, matchings: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = make_subject(tmp_path, **options)
    steps = ways.part_steps(subject, False)
    assert list(steps) == [TEACHER, 'loss_kd_cls', 'loss_kd_bbox', CALIBRATION, MATCHING]
    shapes = []
    monkeypatch.setattr(
        ways,
        'match_queries',
        lambda own, others, activation: shapes.append(match_queries(own, others, activation).shape),
    )
    assert steps[MATCHING]() is None
    assert shapes == [(2, 12)] * matchings
    losses = [steps[name]() for name in ('loss_kd_cls', 'loss_kd_bbox')]
    assert min(losses) > 0
    steps[CALIBRATION]()
    torch.manual_seed(0)
    step = STEPS[DEFAULT](subject, False)
    torch.manual_seed(0)
    assert sum(losses) == pytest.approx(step(), rel=1e-3)


def test_what_has_no_values_at_first_is_filled(tmp_path: Path) -> None:
    """mmdet allocates the embedding of levels, and writes to it in ``init_weights`` alone."""
    subject = make_subject(tmp_path)
    for detector in (subject.student(), subject.distilled()):
        assert detector.level_embed.detach().std() == pytest.approx(1, abs=0.1)
    teacher = torch.load(tmp_path / 'teacher.pth')['state_dict']['level_embed']
    assert teacher.std() == pytest.approx(1, abs=0.1)
