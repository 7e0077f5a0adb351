"""The shipped studies that are planned by a question: what they compare, and that they can run."""

from __future__ import annotations

import copy
import hashlib
from functools import cache
from pathlib import Path

import helpers
import pytest
import torch
from mmdet.registry import METRICS, MODELS
from mmengine.config import ConfigDict

from calkd_det.commands.study.design import CLASSIFIER, Study
from calkd_det.commands.study.runs import Run, expand, student_config, teacher_config
from calkd_det.commands.study.settings import read_study
from calkd_det.measurement.student_classifier import has_fixed_foreground

STUDIES = Path(__file__).resolve().parents[3] / 'configs' / 'studies'
# With eight seeds, and outcomes beside mAP.
NAMES = (
    'dense_retina', 'dense_gfl', 'unseen_images', 'weight_and_temperature', 'student_calibration'
)  # fmt: skip
KNOWLEDGE = ('knowledge_faster', 'knowledge_retina')
planned = pytest.mark.parametrize('name', NAMES)


@cache
def study(name: str) -> Study:
    return read_study(STUDIES / f'{name}.py')


@cache
def runs(*names: str) -> list[Run]:
    return expand([study(name) for name in names])


@planned
def test_a_planned_study_has_its_question_size_and_outcomes(name: str) -> None:
    found = study(name)
    assert found.question.endswith('?')
    assert set(found.primary.advice) == {'higher', 'lower', 'none'}
    assert {cell.seeds for cell in found.cells.values()} == {tuple(range(8))}
    assert found.target == 0.5
    assert found.measure_students
    assert {'D-ECE', 'LaECE'} < set(found.metrics)
    assert 'NOT RUN' in (STUDIES / f'{name}.py').read_text('utf-8')


@planned
def test_its_students_are_evaluated_by_what_its_metrics_name(name: str) -> None:
    found = study(name)
    cfg = student_config(found, found.cells['alone'], 0)
    assert cfg.val_evaluator == cfg.test_evaluator
    for evaluator in cfg.val_evaluator:
        assert METRICS.get(evaluator.type) is not None
        assert evaluator.ann_file == 'data/study-fashion/annotations/val.json'
    prefixes = {METRICS.get(evaluator.type).default_prefix for evaluator in cfg.val_evaluator}
    assert {key.split('/')[0] for key in found.metrics.values()} == prefixes


@pytest.mark.parametrize('name', [*NAMES, *KNOWLEDGE])
def test_primary_comparisons_come_first(name: str) -> None:
    found = study(name)
    assert found.comparisons[0] is found.primary.comparison
    assert found.primary.metric in {*found.metrics, *CLASSIFIER}


def test_the_plan_of_the_studies_of_knowledge_did_not_change_their_runs() -> None:
    """By the hash: their runs were started before."""
    hashes = {name: sorted(run.hash for run in runs(name)) for name in KNOWLEDGE}
    assert {name: len(found) for name, found in hashes.items()} == dict.fromkeys(KNOWLEDGE, 19)
    found = {
        name: hashlib.sha256(' '.join(of_study).encode()).hexdigest()[:16]
        for name, of_study in hashes.items()
    }
    assert found == {
        'knowledge_faster': '08d4e08ef94aeee8',
        'knowledge_retina': '0578a82c9e48fc86',
    }


@pytest.mark.parametrize('name', ['dense_retina', 'dense_gfl'])
def test_dense_studies_compare_calibrators_with_each_weighting(name: str) -> None:
    found = study(name)
    cells = [cell for cell in found.cells.values() if cell.teacher]
    by_weighting: dict[str, list[str]] = {}
    for cell in cells:
        kind = cell.calibrator['type'] if cell.calibrator else str(cell.temperature)
        by_weighting.setdefault(cell.loss['weighting'], []).append(kind)
    wanted = ['1.0', 'fitted', 'PlattScaling', 'BetaScaling', '1.5']
    assert by_weighting == dict.fromkeys(('difference', 'foreground', 'all'), wanted)
    assert all(run.is_fitted for run in runs(name) if run.kind == 'teacher')


@pytest.mark.parametrize('name', ['dense_retina', 'dense_gfl'])
def test_dense_students_and_teachers_build_and_train(name: str) -> None:
    found = study(name)
    (teacher,) = found.teachers.values()
    configs = {
        'student': student_config(found, found.cells['alone'], 0),
        'teacher': teacher_config(found, teacher),
    }
    detectors = {}
    for kind, cfg in configs.items():
        model = ConfigDict(copy.deepcopy(cfg.model.to_dict()))
        model.backbone.init_cfg = model.neck.init_cfg = None
        detectors[kind] = MODELS.build(model)
        losses = helpers.loss(detectors[kind], helpers.batch(num_classes=10))
        assert all(torch.as_tensor(loss).isfinite() for v in losses.values() for loss in [*v])
        assert has_fixed_foreground(detectors[kind])
    widths = {kind: detector.neck.out_channels for kind, detector in detectors.items()}
    assert widths['student'] == widths['teacher']
    assert sum(p.numel() for p in detectors['student'].parameters()) < 0.6 * sum(
        p.numel() for p in detectors['teacher'].parameters()
    )


@pytest.mark.parametrize('name', ['unseen_images', 'weight_and_temperature'])
def test_unseen_images_are_new_to_the_teacher(name: str) -> None:
    found = study(name)
    (teacher,) = found.teachers.values()
    of_teacher = teacher_config(found, teacher).train_dataloader.dataset.indices
    of_student = student_config(found, found.cells['alone'], 0).train_dataloader.dataset.indices
    assert len(of_student) == 500
    assert of_teacher <= min(of_student) <= max(of_student) < 2000


def test_weight_and_temperature_shares_the_runs_of_unseen_images() -> None:
    hashes = [{run.hash for run in runs(name)} for name in ('unseen_images', NAMES[3])]
    assert len(hashes[0] & hashes[1]) == 1 + 32
    control = [c for n, c in study('weight_and_temperature').cells.items() if 'control' in n]
    assert {cell.loss['type'] for cell in control} == {'LogitStandardizationKDLoss'}


def test_teachers_are_those_of_the_earlier_studies() -> None:
    def teachers(*names: str) -> set[str]:
        return {run.hash for run in runs(*names) if run.kind == 'teacher'}

    assert teachers('unseen_images', NAMES[3], 'student_calibration') == teachers('controlled')
    assert teachers('dense_retina') == teachers('knowledge_retina')


def test_no_two_students_share_a_name_but_for_the_same_config() -> None:
    """The report finds rows by the name of the student."""
    everything = [path.stem for path in STUDIES.glob('*.py')]
    bases: dict[tuple[str, str], set[str]] = {}
    for name in everything:
        for run in runs(name):
            if run.kind == 'student':
                key = (str(run.study.results), run.study.student.name)
                bases.setdefault(key, set()).add(run.base_hash)
    assert {key: len(found) for key, found in bases.items() if len(found) > 1} == {}


def test_the_study_on_coco_has_the_cells_of_knowledge() -> None:
    found = study('coco')
    kinds = {
        name: [loss['type'] for loss in cell.loss.values()]
        for name, cell in found.cells.items()
        if cell.loss and 'type' not in cell.loss
    }
    assert kinds == {
        'features': ['PKDLoss'],
        'classes and features': ['KDLoss', 'PKDLoss'],
        'all': ['KDLoss', 'PKDLoss', 'BoxKDLoss'],
    }
    students = [run for run in runs('coco') if run.kind == 'student']
    text = ' '.join((STUDIES / 'coco.py').read_text('utf-8').split())
    assert 'NOT RUN' in text
    assert f'{len(found.cells)} cells x 5 = {len(students)} trainings' in text
    student = student_config(found, found.cells['all'], 0)
    teacher = teacher_config(found, found.teachers['r101'])
    # PKD compares maps of the same width.
    assert student.model.neck.out_channels == teacher.model.neck.out_channels
