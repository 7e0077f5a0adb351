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
from mmengine.config import Config, ConfigDict

from calkd_det.commands.study.design import CLASSIFIER, Study
from calkd_det.commands.study.rows import read_rows
from calkd_det.commands.study.runs import Run, expand, student_config, teacher_config
from calkd_det.commands.study.settings import read_study
from calkd_det.measurement.student_classifier import has_fixed_foreground

STUDIES = Path(__file__).resolve().parents[3] / 'configs' / 'studies'
# With outcomes beside mAP.
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
    assert {cell.seeds for cell in found.cells.values()} == {tuple(range(4))}
    assert found.target == 0.5
    assert found.measure_students
    assert {'D-ECE', 'LaECE'} < set(found.metrics)


@planned
def test_a_study_without_rows_says_so(name: str) -> None:
    rows = read_rows(STUDIES.parents[1] / study(name).results)
    has_rows = study(name).name in {row['study'] for row in rows}
    assert ('NOT RUN' in (STUDIES / f'{name}.py').read_text('utf-8')) is not has_rows


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


@pytest.mark.parametrize('name', [*NAMES, *KNOWLEDGE, 'knowledge_dino'])
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
    assert len(hashes[0] & hashes[1]) == 1 + 16
    control = [c for n, c in study('weight_and_temperature').cells.items() if 'control' in n]
    assert {cell.loss['type'] for cell in control} == {'LogitStandardizationKDLoss'}


def test_studies_share_their_teachers() -> None:
    def teachers(*names: str) -> set[str]:
        return {run.hash for run in runs(*names) if run.kind == 'teacher'}

    own = teachers('student_calibration')
    assert len(own) == 2
    assert teachers('unseen_images', 'weight_and_temperature') < own
    # Trained anew, as the weights of the first studies' are gone.
    assert not own & teachers('controlled')
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


def test_the_cells_of_dino_have_the_knowledge_of_their_names() -> None:
    found = study('knowledge_dino')
    kinds = {'classes': 'cls', 'boxes': 'bbox', 'features': 'feat'}
    for name, cell in found.cells.items():
        if cell.teacher is None:
            assert name == 'alone'
            continue
        keys = {key for word, key in kinds.items() if word in name or name == 'all'}
        assert set(cell.loss) == keys, name
        assert cell.teacher_options.get('denoising', False) == (
            'denoising' in name or name == 'all'
        )
        assert cell.temperature == 'fitted'
        assert cell.seeds == (0, 1, 2)
    assert len(found.cells) == 6


def test_dino_starts_from_a_whole_dino_of_its_size() -> None:
    found = study('knowledge_dino')
    student = student_config(found, found.cells['alone'], 0)
    (step,) = found.prepare[1:]
    assert str(step.creates) == student.load_from
    (config,) = (word for word in step.command if 'detectors/' in word)
    start = Config.fromfile(STUDIES / 'detectors' / Path(config).name)
    assert step.creates.name == f'epoch_{start.train_cfg.max_epochs}.pth'
    assert start.model.type == 'DINO'
    plain = {**start.model.to_dict(), 'type': 'CalKDDINO', 'teacher': None, 'distillation': None}
    assert student.model.to_dict() == plain


@pytest.fixture(scope='module')
def dino_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of an untrained teacher of that study."""
    path = tmp_path_factory.mktemp('dino') / 'teacher.pth'
    found = study('knowledge_dino')
    (teacher,) = found.teachers.values()
    cfg = teacher_config(found, teacher)
    meta = dict(dataset_meta=dict(classes=cfg.classes))
    torch.save(dict(meta=meta, state_dict=helpers.build(cfg.model).state_dict()), path)
    return path


@pytest.mark.parametrize('name', ['alone', 'all'])
def test_dino_students_and_teachers_train(name: str, dino_teacher: Path) -> None:
    found = study('knowledge_dino')
    teacher_cfg = teacher_config(found, *found.teachers.values())
    cell = found.cells[name]
    cfg = student_config(
        found, cell, 0, teacher='teacher.py', checkpoint=str(dino_teacher), temperature=0.5
    )
    if cell.teacher:
        cfg.model.teacher.config = dict(model=teacher_cfg.model.to_dict())
    student = helpers.build(cfg.model)
    student.dataset_meta = dict(classes=cfg.classes)
    student.init_weights()
    losses = helpers.loss(student, helpers.batch(num_classes=10))
    wanted = {f'loss_kd_{key}' for key in cell.loss or ()}
    wanted |= {'dn.loss_kd_cls', 'dn.loss_kd_bbox'} if cell.teacher_options else set()
    assert {key for key in losses if 'loss_kd' in key} == wanted
    assert all(torch.as_tensor(loss).isfinite().all() for loss in losses.values())
    assert cfg.model.neck.out_channels == teacher_cfg.model.neck.out_channels
    assert 2 * cfg.model.backbone.base_channels == teacher_cfg.model.backbone.base_channels


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
