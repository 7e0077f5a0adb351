"""The grid of runs, their configs and their hashes."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import made_up
import pytest
from mmdet.registry import MODELS

from calkd_det.commands.study.runs import (
    Run,
    expand,
    student_config,
    teacher_config,
)
from calkd_det.commands.study.settings import parse_study, read_study
from calkd_det.errors import ConfigError
from calkd_det.measurement.held_out import annotation_file, train_subset

STUDIES = Path(__file__).resolve().parents[3] / 'configs' / 'studies'
FASHION = ('controlled', 'teachers', 'methods')


def runs_of(folder: Path, **changes: Any) -> list[Run]:
    return expand([made_up.study(folder, **changes)])


def test_the_grid_has_every_cell_with_every_seed_once(tmp_path: Path) -> None:
    runs = runs_of(tmp_path)
    assert [run.kind for run in runs] == ['teacher'] * 2 + ['student'] * 35
    assert len({run.hash for run in runs}) == 37
    students = {(run.name, run.seed) for run in runs[2:]}
    assert len(students) == 35
    for run in runs[2:]:
        assert (run.teacher is None) == (run.name == 'alone')
        assert run.teacher is None or run.name.startswith(run.teacher.name)
    # Whole pairs first.
    assert [run.seed for run in runs[2:]] == sorted(run.seed for run in runs[2:])


def test_what_studies_have_in_common_is_run_once(tmp_path: Path) -> None:
    one = made_up.study(tmp_path)
    content = made_up.content(tmp_path, name='other', seeds=[3, 4, 5], comparisons=[])
    content['cells'] = [{**cell, 'name': f'other {cell["name"]}'} for cell in content['cells']]
    assert len(expand([one, parse_study(content)])) == 37 + 7


def test_teachers_without_a_cell_are_not_trained(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, cells=[dict(name='alone')], comparisons=[])
    assert {run.kind for run in runs} == {'student'}


def test_a_hash_changes_with_what_decides_a_run_and_with_nothing_else(tmp_path: Path) -> None:
    def by_name(runs: list[Run]) -> dict[tuple, str]:
        return {(run.name, run.cell and run.seed): run.hash for run in runs}

    before = by_name(runs_of(tmp_path))

    def changed(change: Any) -> set[str]:
        content = copy.deepcopy(made_up.content(tmp_path))
        change(content)
        after = by_name(expand([parse_study(content)]))
        return {name for (name, seed), digest in after.items() if before[name, seed] != digest}

    everything = {name for name, _ in before}
    students = {name for name in everything if ',' in name or name == 'alone'}
    over_confident = {name for name in everything if name.startswith('over-confident')}

    assert changed(lambda c: c.update(work_dir='elsewhere', title='t', target=0.1)) == set()
    assert changed(lambda c: c['cells'].reverse()) == set()
    assert changed(lambda c: c['data']['mini'].update(out_dir='elsewhere')) == set()
    assert changed(lambda c: c['data']['mini'].update(seed=7)) == everything
    assert changed(lambda c: c.update(deterministic=False)) == everything
    assert (
        changed(lambda c: c['student'].update(cfg_options={'train_cfg.max_epochs': 3})) == students
    )
    # A teacher's change is one of its students, too.
    assert changed(lambda c: c['teachers'][1].update(seed=9)) == over_confident
    assert changed(lambda c: c['cells'][2].update(temperature=1.1)) == {'calibrated, T = 1'}
    by_group = dict(type='ForegroundBackgroundScaling')

    def calibrate(content: dict) -> None:
        del content['cells'][2]['temperature']
        content['cells'][2]['calibrator'] = by_group

    assert changed(calibrate) == {'calibrated, T = 1'}

    def fit(content: dict) -> None:
        del content['cells'][2]['temperature']
        content['cells'][2]['calibrator'] = dict(type='PlattScaling', parameters='fitted')

    # The teacher's own run is the same, whichever calibrators are fitted to it.
    assert changed(fit) == {'calibrated, T = 1'}
    # What is read of a run decides nothing of it.
    assert changed(lambda c: c.update(metrics=dict(mAP='coco/segm_mAP'))) == set()
    assert changed(lambda c: c.update(measure_students=True)) == set()
    loss = dict(type='KDLoss', tau=2.0)
    assert changed(lambda c: c['cells'][2].update(loss=loss)) == {'calibrated, T = 1'}
    options = dict(precision='bfloat16')
    assert changed(lambda c: c['cells'][2].update(teacher_options=options)) == {'calibrated, T = 1'}
    assert changed(lambda c: c['cells'][2].update(teacher_options={})) == set()


def test_cells_share_all_but_teacher_and_loss(tmp_path: Path) -> None:
    students = [run for run in runs_of(tmp_path) if run.kind == 'student']
    assert len({run.base_hash for run in students}) == 1
    study = students[0].study
    configs = []
    for name in ('alone', 'calibrated, T = 2'):
        cfg = student_config(
            study, study.cells[name], 3, teacher='t.py', checkpoint='t.pth', temperature=2.0
        )
        configs.append(cfg.to_dict())
    alone, distilled = configs
    assert alone['model'].pop('teacher') is None
    assert alone['model'].pop('distillation') is None
    assert distilled['model'].pop('teacher') == {
        'config': 't.py',
        'checkpoint': 't.pth',
        'calibrator': dict(type='TemperatureScaling', temperature=2.0),
    }
    assert distilled['model'].pop('distillation') == made_up.KD
    assert alone == distilled
    assert alone['randomness'] == dict(seed=3, deterministic=True)
    assert alone['custom_hooks'] == [dict(type='RunFingerprintHook')]
    assert 'calkd_det' in alone['custom_imports']['imports']
    assert alone['default_hooks']['checkpoint']['interval'] == -1


def test_options_of_the_configs_own_teacher_are_kept(tmp_path: Path) -> None:
    study = made_up.study(
        tmp_path,
        student=dict(
            name='s',
            config=made_up.content(tmp_path)['student']['config'],
            cfg_options={'model.teacher.precision': 'bfloat16'},
        ),
    )
    cell = study.cells['calibrated, T = 1']
    cfg = student_config(study, cell, 0, temperature=1.0)
    assert cfg.model.teacher.precision == 'bfloat16'
    own = dataclasses.replace(cell, teacher_options=dict(precision='float16', denoising=True))
    cfg = student_config(study, own, 0, temperature=1.0)
    assert (cfg.model.teacher.precision, cfg.model.teacher.denoising) == ('float16', True)
    assert student_config(study, study.cells['alone'], 0).model.teacher is None


def test_wrong_detectors_are_named(tmp_path: Path) -> None:
    content = made_up.content(tmp_path)
    plain, distilled = content['teachers'][0]['config'], content['student']['config']
    with pytest.raises(ConfigError, match="name a distilled detector, 'CalKDFasterRCNN'"):
        runs_of(tmp_path, student=dict(name='s', config=plain))
    teachers = [dict(name=name, config=distilled) for name in ('calibrated', 'over-confident')]
    with pytest.raises(ConfigError, match="'calibrated' is itself a distilled student"):
        runs_of(tmp_path, teachers=teachers)
    with pytest.raises(ConfigError, match=r"cannot read 'none\.py'"):
        runs_of(tmp_path, student=dict(name='s', config='none.py'))
    options = {'param_scheduler.7.end': 1}
    with pytest.raises(ConfigError, match="cfg_options of 's'"):
        runs_of(tmp_path, student=dict(name='s', config=distilled, cfg_options=options))


def test_a_distilled_detector_is_known_by_its_class(tmp_path: Path) -> None:
    """Neither a name that begins with CalKD nor one that does not says what a class is."""
    (tmp_path / 'my_detectors.py').write_text(
        'from mmdet.models import FasterRCNN\n'
        'from mmdet.registry import MODELS\n'
        'from calkd_det.detectors import CalKDFasterRCNN\n'
        'class Mine(CalKDFasterRCNN): pass\n'
        'class CalKDLookalike(FasterRCNN): pass\n'
        'for cls in (Mine, CalKDLookalike): MODELS.register_module(module=cls, force=True)\n'
    )

    def runs(name: str) -> list[Run]:
        config = tmp_path / f'{name}.py'
        config.write_text(
            f'_base_ = {made_up.content(tmp_path)["student"]["config"]!r}\n'
            'import sys\n'
            f'sys.path.insert(0, {str(tmp_path)!r})\n'
            "custom_imports = dict(imports=['calkd_det', 'my_detectors'])\n"
            f'model = dict(type={name!r})\n'
        )
        return runs_of(tmp_path, student=dict(name='s', config=str(config)))

    assert len(runs('Mine')) == 37
    with pytest.raises(ConfigError, match="is 'CalKDLookalike': name a distilled detector, such"):
        runs('CalKDLookalike')
    with pytest.raises(ConfigError, match="nothing is registered as 'CalKDNoSuch'"):
        runs('CalKDNoSuch')


def test_a_teachers_config_is_plain(tmp_path: Path) -> None:
    study = made_up.study(tmp_path)
    cfg = teacher_config(study, study.teachers['over-confident'])
    assert cfg.model.type == 'FasterRCNN'
    assert cfg.randomness.seed == 1
    ann, images = annotation_file(cfg, 'train')
    assert (ann, images) == (Path('data/mini/annotations/train.json'), Path('data/mini/train'))
    cfg.train_dataloader = None
    with pytest.raises(ConfigError, match='train_dataloader of the config names no annotation'):
        annotation_file(cfg, 'train')


def test_the_fashion_studies_share_runs() -> None:
    studies = [read_study(STUDIES / f'{name}.py') for name in FASHION]
    together = expand(studies)
    apart = sum(len(expand([study])) for study in studies)
    assert len(together) < apart
    assert len({study.results for study in studies}) == 1
    assert len({run.base_hash for run in together if run.kind == 'student'}) == 1
    assert sum(run.kind == 'teacher' for run in together) >= 12
    assert all(len(cell.seeds) >= 5 for study in studies for cell in study.cells.values())


def test_the_fashion_teachers_are_all_different_and_build() -> None:
    study = read_study(STUDIES / 'teachers.py')
    seen = set()
    for teacher in study.teachers.values():
        cfg = teacher_config(study, teacher)
        assert 'calkd_det' in cfg.custom_imports.imports
        detector = MODELS.build(copy.deepcopy(cfg.model))
        smoothed = type(detector.roi_head.bbox_head.loss_cls).__name__ != 'CrossEntropyLoss'
        assert smoothed == ('smoothed' in teacher.name)
        seen.add(str(cfg.to_dict()))
    assert len(seen) == len(study.teachers) == 13


@pytest.mark.parametrize('path', sorted(STUDIES.glob('*.py')), ids=lambda path: path.stem)
def test_every_shipped_study_has_runs(path: Path) -> None:
    runs = expand([read_study(path)])
    assert {run.kind for run in runs} == {'teacher', 'student'}
    assert all(run.study.results.suffix == '.jsonl' for run in runs)


def test_the_page_tells_the_set_up_of_the_configs() -> None:
    page = ' '.join((STUDIES.parents[1] / 'docs' / 'evidence.md').read_text('utf-8').split())
    for name in FASHION:
        study = read_study(STUDIES / f'{name}.py')
        counts = study.data.mini['num_images']
        cfg = student_config(study, study.cells['student alone'], 0)
        assert (
            f'{study.data.mini["image_size"]} pixels a side: {counts["train"]:,} images to train '
            f'on, {counts["calibration"]} to calibrate teachers on, {counts["val"]} to judge by'
        ) in page
        assert (
            f'a ResNet-18 of {cfg.model.backbone.base_channels} channels, trained for '
            f'{cfg.train_cfg.max_epochs} epochs on {train_subset(cfg)} of the training images'
        ) in page
        assert {len(cell.seeds) for cell in study.cells.values()} == {5}
    assert 'Five seeds a cell' in page
