"""Study configs: what is read, and what is said of a wrong one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import made_up
import pytest

from calkd_det.commands.study.settings import parse_study, read_study
from calkd_det.errors import ConfigError

STUDIES = Path(__file__).resolve().parents[3] / 'configs' / 'studies'
KD = dict(type='KDLoss')
BY_GROUP = dict(type='ForegroundBackgroundScaling')
TAUGHT = dict(name='a', teacher='calibrated', temperature=1.0, loss=KD)
DENOISING = dict(denoising=True)


def test_a_study_is_read_as_it_is_written(tmp_path: Path) -> None:
    study = made_up.study(tmp_path, target=0.3)
    assert study.cells['alone'].teacher is None
    cell = study.cells['calibrated, T = 2']
    assert (cell.teacher, cell.temperature, cell.loss) == ('calibrated', 2.0, KD)
    assert cell.seeds == (0, 1, 2, 3, 4)
    assert study.comparisons[0].name == 'calibrated, T = 1 − alone'
    assert study.comparisons[2].of == ('calibrated, T = 2', 'calibrated, T = 0.5')
    assert study.results == tmp_path / 'runs' / 'results.jsonl'
    assert study.data.held_out_ann == tmp_path / 'data' / 'annotations' / 'calibration.json'
    assert study.target == 0.3


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'name': 'a b'}, 'study.name names files'),
        ({'nmae': 1}, "study has no key 'nmae': did you mean 'name'"),
        ({'seeds': []}, 'study.seeds must be a list of seeds'),
        ({'seeds': [1, 1]}, 'study.seeds names a seed twice'),
        ({'seeds': [0.5]}, 'study.seeds must be a whole number'),
        ({'cells': [dict(name='a'), dict(name='a')]}, "study.cells has two of the name 'a'"),
        ({'cells': [dict(name='a', temperature=1.0)]}, 'study.cells.0..temperature is set, but'),
        ({'cells': [dict(name='a', teacher='calibratd')]}, "did you mean 'calibrated'"),
        (
            {'cells': [dict(name='a', teacher='calibrated', temperature=0, loss=KD)]},
            "study.cells.0..temperature must be a finite number > 0, or 'fitted'",
        ),
        (
            {'cells': [dict(name='a', teacher='calibrated', temperature='fit', loss=KD)]},
            "temperature must be a finite number > 0, or 'fitted'",
        ),
        (
            {'cells': [dict(name='a', teacher='calibrated', temperature=1.0)]},
            'study.cells.0..loss must be the config of a loss',
        ),
        (
            {'cells': [dict(name='a', teacher='calibrated', temperature=1.0, calibrator=BY_GROUP)]},
            'study.cells.0. has a temperature and a calibrator',
        ),
        (
            {'cells': [dict(name='a', teacher='calibrated', calibrator='file.json', loss=KD)]},
            'study.cells.0..calibrator must be the config of a calibrator',
        ),
        ({'cells': [dict(name='a', calibrator=BY_GROUP)]}, 'study.cells.0..calibrator is set, but'),
        (
            {'cells': [dict(name='a', teacher_options=DENOISING)]},
            'study.cells.0..teacher_options is set, but',
        ),
        (
            {'cells': [dict(TAUGHT, teacher_options=True)]},
            'study.cells.0..teacher_options must be a dict of further keys of model.teacher',
        ),
        *(
            (
                {'cells': [dict(TAUGHT, teacher_options={name: 'x'})]},
                f"study.cells.0..teacher_options has '{name}', which the study sets",
            )
            for name in ('config', 'checkpoint', 'calibrator')
        ),
        ({'metrics': dict(AP50='coco/bbox_mAP_50')}, "study.metrics must be a dict with 'mAP'"),
        ({'metrics': dict(mAP=1)}, 'study.metrics.mAP must be a text'),
        ({'comparisons': [dict(of='alone')]}, 'study.comparisons.0..to is missing'),
        ({'comparisons': [dict(of='alone', to='alnoe')]}, "did you mean 'alone'"),
        ({'figures': ['pared']}, "did you mean 'paired'"),
        ({'reliability': ['x']}, 'study.reliability names no teacher'),
        ({'data': dict(version='1')}, 'study.data.held_out_ann is missing'),
        ({'prepare': [dict(command='make', creates='x')]}, 'command must be a list of words'),
        ({'gpus_per_run': 0}, 'study.gpus_per_run must be a whole number >= 1'),
        ({'measure_students': 1}, 'study.measure_students must be True or False'),
        ({'resume': 1}, 'study.resume must be True or False'),
        ({'teachers': 'x'}, 'study.teachers must be a list of dicts'),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    if 'cells' in changes:
        changes = {'comparisons': [], **changes}
    with pytest.raises(ConfigError, match=message):
        made_up.study(tmp_path, **changes)


def test_a_cell_takes_a_calibrator_and_several_losses(tmp_path: Path) -> None:
    losses = dict(cls=KD, feat=dict(type='PKDLoss'))
    cells = [dict(name='a', teacher='calibrated', calibrator=BY_GROUP, loss=losses)]
    study = made_up.study(tmp_path, cells=cells, comparisons=[])
    cell = study.cells['a']
    assert (cell.temperature, cell.calibrator, cell.loss) == (None, BY_GROUP, losses)
    assert study.settings(cell)['calibrator'] == BY_GROUP


def test_a_cell_takes_options_of_its_teacher(tmp_path: Path) -> None:
    cells = [dict(TAUGHT, teacher_options=DENOISING), dict(TAUGHT, name='b', teacher_options={})]
    study = made_up.study(tmp_path, cells=cells, comparisons=[])
    assert study.cells['a'].teacher_options == DENOISING
    assert study.settings(study.cells['a'])['teacher_options'] == DENOISING
    assert 'teacher_options' not in study.settings(study.cells['b'])


def test_rows_of_cells_with_a_temperature_are_found_as_before(tmp_path: Path) -> None:
    study = made_up.study(tmp_path)
    for cell in study.cells.values():
        assert set(study.settings(cell)) == {'student', 'teacher', 'temperature', 'loss'}


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    content = made_up.content(tmp_path)
    del content['student']
    with pytest.raises(ConfigError, match=r'study\.student is missing'):
        parse_study(content)


def test_a_file_without_a_study_is_named(tmp_path: Path) -> None:
    path = tmp_path / 'empty.py'
    path.write_text('x = 1\n')
    with pytest.raises(ConfigError, match="has no 'study'"):
        read_study(path)
    with pytest.raises(ConfigError, match='cannot read'):
        read_study(tmp_path / 'none.py')
    path.write_text('x = ')
    with pytest.raises(ConfigError, match='cannot read'):
        read_study(path)


@pytest.mark.parametrize('path', sorted(STUDIES.glob('*.py')), ids=lambda path: path.stem)
def test_every_shipped_study_is_a_study(path: Path) -> None:
    assert read_study(path).comparisons


def test_shipped_studies_have_names_of_their_own() -> None:
    names = [read_study(path).name for path in STUDIES.glob('*.py')]
    assert len(set(names)) == len(names) > 1
