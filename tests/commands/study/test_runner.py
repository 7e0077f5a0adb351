"""The runner keeps what is done and does the rest once, whenever it is killed.

The trainings are stand-ins that take no time; ``test_end_to_end.py`` trains for real.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import io
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import made_up
import pytest
import torch
from mmengine.config import Config

from calkd_det.commands import machine
from calkd_det.commands.engine import JobFailed
from calkd_det.commands.machine import Machine, look_at_machine
from calkd_det.commands.study import jobs
from calkd_det.commands.study.design import Study
from calkd_det.commands.study.rows import read_rows
from calkd_det.commands.study.runner import prepare, run_all
from calkd_det.commands.study.runs import Run, expand, student_config, teacher_config
from calkd_det.commands.study.state import find_run, list_commands, list_runs, look
from calkd_det.errors import ConfigError

TRAIN = """
import json, os, pathlib, sys, time
config, folder = sys.argv[1], pathlib.Path(sys.argv[3])
with open('attempts.txt', 'a') as file:
    file.write(folder.name + chr(10))
pathlib.Path('pids').mkdir(exist_ok=True)
pathlib.Path('pids', str(os.getpid())).touch()
text = pathlib.Path(config).read_text()
if pathlib.Path('fail').exists() and pathlib.Path('fail').read_text() in text:
    print('out of luck')
    sys.exit(3)
(folder / 'half.txt').write_text('left by ' + str(os.getpid()))
time.sleep(float(os.environ.get('STAND_IN_SECONDS', 0)))
log = folder / '20260101' / 'vis_data' / 'scalars.json'
log.parent.mkdir(parents=True)
figures = {'coco/bbox_mAP': 0.2, 'coco/bbox_mAP_50': 0.4, 'coco/bbox_mAP_75': 0.1}
lines = [{'loss': 1.0, 'step': 1}, {**figures, 'step': 2}]
log.write_text(''.join(json.dumps(line) + chr(10) for line in lines))
(folder / 'epoch_2.pth').write_bytes(b'weights')
(folder / 'last_checkpoint').write_text('/somewhere/epoch_2.pth')
prints = {'initial_weights': 'a', 'data_order': 'b', 'iterations': 2, 'resumed': False}
(folder / 'fingerprint.json').write_text(json.dumps(prints))
"""
MEASURE = """
import json, pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])
assert pathlib.Path(sys.argv[2]).read_bytes() == b'weights'
out.write_text(pathlib.Path('calibration.json').read_text())
"""
MEASURE_STUDENT = """
import json, pathlib, sys
assert pathlib.Path(sys.argv[2]).read_bytes() == b'weights'
assert 'CalKDFasterRCNN' in pathlib.Path(sys.argv[1]).read_text()
out = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])
out.write_text(json.dumps({'images': 9, 'objects': None, 'distillation': {'accuracy': 0.5}}))
"""
CALIBRATE = """
import json, pathlib, sys
assert pathlib.Path(sys.argv[2]).read_bytes() == b'weights'
out = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])
out.mkdir()
fields = {
    'temperature': 1.25,
    'platt_scaling': {'a': 0.5, 'b': -1.5},
    'class_beta_scaling': {'a': [1.0, 2.0], 'b': [0.5, 0.5], 'c': [0.0, -1.0]},
    'background_bias_scaling': {'temperature': 1.5, 'bias': -0.25},
    'foreground_background_temperatures': [1.5, 1.5, 0.5],
    'class_temperatures': [1.5, 1.25, 0.5],
}
(out / 'temperature.json').write_text(json.dumps(fields))
with open('fits.txt', 'a') as file:
    file.write('x')
"""
MACHINE = Machine('abacus', ({'STAND_IN_SECONDS': '0'},) * 2)
SLOW = Machine('abacus', ({'STAND_IN_SECONDS': '0.4'},))


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study in an empty folder, whose trainings are stand-ins."""
    monkeypatch.chdir(tmp_path)
    scripts = {'train': TRAIN, 'measure': MEASURE, 'measure_student': MEASURE_STUDENT}
    scripts['calibrate'] = CALIBRATE
    for name, code in scripts.items():
        Path(f'{name}.py').write_text(code)
    both = {name: made_up.calibration(1.25, 0.05, 0.9) for name in ('held_out', 'training')}
    Path('calibration.json').write_text(json.dumps(both))
    Path('held_out.json').touch()
    monkeypatch.setattr(jobs, 'MMDET_TOOLS', tmp_path)
    monkeypatch.setattr(jobs, 'MEASURE', ('measure.py',))
    monkeypatch.setattr(jobs, 'CALIBRATE', ('calibrate.py',))
    monkeypatch.setattr(jobs, 'MEASURE_STUDENT', ('measure_student.py',))
    monkeypatch.setattr(jobs, 'LOCK_SECONDS', 0.5)
    kd = dict(teacher='calibrated', loss=made_up.KD)
    return made_up.study(
        Path('.'),
        data=dict(version='1', held_out_ann='held_out.json', held_out_images='.'),
        cells=[
            dict(name='alone'),
            dict(name='KD', temperature=1.0, **kd),
            dict(name='fitted', temperature='fitted', **kd),
        ],
        seeds=[0, 1],
        comparisons=[],
    )


def attempts() -> list[str]:
    path = Path('attempts.txt')
    return path.read_text().split() if path.is_file() else []


def run(runs: list[Run], place: Machine = MACHINE) -> list[str]:
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            run_all(runs, place)
    finally:
        print(said.getvalue())
    return said.getvalue().splitlines()


def test_every_run_has_one_row_and_is_not_done_again(study: Study) -> None:
    runs = expand([study])
    said = run(runs)
    rows = read_rows(study.results)
    assert sorted(row['hash'] for row in rows) == sorted(found.hash for found in runs)
    assert rows[0]['kind'] == 'teacher' or rows[0]['name'] == 'alone'
    assert not any('classifier' in row for row in rows)
    assert sorted(attempts()) == sorted(found.id for found in runs)
    assert said[0] == '0 of 7 runs are done; 7 to do, 2 at a time'
    assert len(said) == 8
    assert 'mAP 20.0 in' in said[1]
    assert said[-1].startswith('[7/7] ')
    assert run(runs) == ['nothing to do: every run has its row']
    assert len(attempts()) == 7
    assert {state for _, state in look(runs)} == {'done'}
    # A teacher's weights are kept, a student's are not.
    kept = {path.parent.name.split('-')[0] for path in study.work_dir.glob('*/*.pth')}
    assert kept == {'teacher'}


def test_a_new_name_for_what_has_rows_is_refused(study: Study) -> None:
    run(expand([study]))
    student = dataclasses.replace(study.student, name='tiny')
    message = "student-.* with settings .*'small'.*, the study with .*'tiny'.*: give"
    with pytest.raises(ConfigError, match=message):
        look(expand([dataclasses.replace(study, student=student)]))


def test_a_row_tells_of_its_run(study: Study) -> None:
    runs = expand([study])
    run(runs)
    rows = {(row['name'], row['seed']): row for row in read_rows(study.results)}
    row = rows['fitted', 1]
    assert row['metrics'] == {'mAP': 0.2, 'AP50': 0.4, 'AP75': 0.1}
    assert row['settings'] == {
        'student': 'small',
        'teacher': 'calibrated',
        'temperature': 'fitted',
        'loss': made_up.KD,
    }
    assert row['teacher']['T'] == row['teacher']['fitted_T'] == 1.25
    assert (row['teacher']['ece'], row['teacher']['mAP']) == (0.05, 0.2)
    assert row['device'] == 'abacus'
    assert {'torch', 'mmdet', 'mmengine', 'mmcv', 'calkd_det'} <= set(row['versions'])
    assert rows['KD', 0]['teacher']['T'] == 1.0
    assert 'teacher' not in rows['alone', 0]
    assert rows['calibrated', 0]['calibration']['held_out']['bins']['1']['count']
    fitted = next(found for found in runs if (found.name, found.seed) == ('fitted', 1))
    cfg = Config.fromfile(fitted.folder / 'config.py')
    assert cfg.model.teacher.calibrator.temperature == 1.25
    assert Path(cfg.model.teacher.checkpoint) == fitted.teacher.folder / 'epoch_2.pth'
    assert Path(cfg.model.teacher.config) == fitted.teacher.folder / 'config.py'
    assert cfg.randomness.seed == 1


def test_the_figures_that_a_study_names_are_read(study: Study) -> None:
    made = dataclasses.replace(study, metrics={'mAP': 'coco/bbox_mAP_75', 'again': 'coco/bbox_mAP'})
    run(expand([made]))
    assert {str(row['metrics']) for row in read_rows(made.results)} == {
        str({'mAP': 0.1, 'again': 0.2})
    }


def test_a_figure_that_no_evaluator_gives_is_an_error_not_zero(study: Study, capsys: Any) -> None:
    made = dataclasses.replace(study, metrics={'mAP': 'lvis/bbox_AP'})
    with pytest.raises(JobFailed):
        run(expand([made]))
    assert (
        "study.metrics.mAP: its evaluators gave no 'lvis/bbox_AP', but coco/bbox_mAP, "
        'coco/bbox_mAP_50, coco/bbox_mAP_75'
    ) in ' '.join(capsys.readouterr().out.split())
    assert read_rows(made.results) == []


def test_a_figure_that_is_nan_is_an_error(study: Study, capsys: Any) -> None:
    """The calibration of a detector that finds nothing is not known."""
    train = Path('train.py').read_text()
    Path('train.py').write_text(train.replace("'coco/bbox_mAP_50': 0.4", "'D-ECE': float('nan')"))
    made = dataclasses.replace(study, metrics={'mAP': 'coco/bbox_mAP', 'D-ECE': 'D-ECE'})
    alone = next(found for found in expand([made]) if found.name == 'alone')
    with pytest.raises(JobFailed):
        run([alone])
    assert "study.metrics.D-ECE: 'D-ECE' is NaN" in ' '.join(capsys.readouterr().out.split())
    assert read_rows(made.results) == []


def test_figures_that_only_students_have_are_not_asked_of_teachers(study: Study) -> None:
    train = Path('train.py').read_text()
    Path('train.py').write_text(
        train.replace(
            'lines = [',
            "if folder.name.startswith('student'):\n"
            "    figures['calibration/D-ECE_IoU50'] = 0.03\nlines = [",
        )
    )
    metrics = {'mAP': 'coco/bbox_mAP', 'D-ECE': 'calibration/D-ECE_IoU50'}
    made = dataclasses.replace(study, metrics=metrics)
    run(expand([made]))
    found = {row['kind']: row['metrics'] for row in read_rows(made.results)}
    assert found == {'teacher': {'mAP': 0.2}, 'student': {'mAP': 0.2, 'D-ECE': 0.03}}


def test_a_student_is_measured_where_the_study_says_so(study: Study) -> None:
    made = dataclasses.replace(study, measure_students=True)
    alone = next(found for found in expand([made]) if found.name == 'alone')
    Path('measure_student.py').write_text('raise SystemExit(1)')
    with pytest.raises(JobFailed, match='1 failed: student alone, seed 0'):
        run([alone])
    assert read_rows(study.results) == []
    Path('measure_student.py').write_text(MEASURE_STUDENT)
    run([alone])
    (row,) = read_rows(study.results)
    assert row['classifier'] == {'images': 9, 'objects': None, 'distillation': {'accuracy': 0.5}}


def test_a_run_of_two_studies_is_measured_if_one_of_them_says_so(study: Study) -> None:
    made = dataclasses.replace(study, name='other', measure_students=True)
    together, apart = expand([study, made]), expand([study])
    assert [found.hash for found in together] == [found.hash for found in apart]
    assert all(found.study.measure_students for found in together if found.kind == 'student')


def test_cocos_figures_are_evaluated_unrounded_and_the_hash_is_the_same(study: Study) -> None:
    runs = expand([study])
    run(runs)
    for found in runs:
        cfg = Config.fromfile(found.folder / 'config.py')
        assert cfg.val_evaluator.type == cfg.test_evaluator.type == 'UnroundedCocoMetric'
        assert student_or_teacher_config(found).val_evaluator.type == 'CocoMetric'
        cfg.val_evaluator.type = 'CocoMetric'
        assert cfg.val_evaluator == student_or_teacher_config(found).val_evaluator


def student_or_teacher_config(found: Run) -> Config:
    if found.cell is None:
        return teacher_config(found.study, found.detector)
    return student_config(found.study, found.cell, found.seed)


def test_a_cell_takes_any_calibrator(study: Study) -> None:
    calibrator = dict(type='ForegroundBackgroundScaling', temperatures=[1.5, 1.5, 0.9])
    cell = dataclasses.replace(
        study.cells['KD'], name='by group', temperature=None, calibrator=calibrator
    )
    made = dataclasses.replace(study, cells={'by group': cell})
    runs = expand([made])
    run(runs)
    row = next(row for row in read_rows(made.results) if row['kind'] == 'student')
    assert row['settings']['calibrator'] == calibrator
    assert (row['settings']['temperature'], row['teacher']['T']) == (None, None)
    assert row['teacher']['fitted_T'] == 1.25
    cfg = Config.fromfile(runs[1].folder / 'config.py')
    assert cfg.model.teacher.calibrator == calibrator
    assert {state for _, state in look(runs)} == {'done'}


FITTED_CALIBRATORS = {
    'PlattScaling': (dict(parameters='fitted'), {'a': 0.5, 'b': -1.5}),
    'BetaScaling': (
        dict(parameters='fitted', per_class=True),
        {'a': [1.0, 2.0], 'b': [0.5, 0.5], 'c': [0.0, -1.0]},
    ),
    'BackgroundBiasScaling': (dict(parameters='fitted'), {'temperature': 1.5, 'bias': -0.25}),
    'TemperatureScaling': (dict(temperature='fitted'), {'temperature': 1.25}),
    'ForegroundBackgroundScaling': (
        dict(temperatures='fitted'), {'foreground_background_temperatures': [1.5, 1.5, 0.5]}
    ),
    'ClassTemperatureScaling': (
        dict(temperatures='fitted'), {'class_temperatures': [1.5, 1.25, 0.5]}
    ),
}  # fmt: skip


def fitted_study(study: Study, *kinds: str) -> Study:
    cells = {
        kind: dataclasses.replace(
            study.cells['KD'],
            name=kind,
            temperature=None,
            seeds=(0,),
            calibrator=dict(type=kind, **FITTED_CALIBRATORS[kind][0]),
        )
        for kind in kinds
    }
    return dataclasses.replace(study, cells=cells)


def test_a_cell_takes_each_calibrator_that_is_fitted_to_its_teacher(study: Study) -> None:
    made = fitted_study(study, *FITTED_CALIBRATORS)
    runs = expand([made])
    run(runs)
    file = runs[0].folder / 'calibration' / 'temperature.json'
    assert Path('fits.txt').read_text() == 'x'
    rows = {row['name']: row for row in read_rows(made.results)}
    for found in runs[1:]:
        options, parameters = FITTED_CALIBRATORS[found.name]
        row = rows[found.name]
        assert row['settings']['calibrator'] == dict(type=found.name, **options)
        assert row['teacher']['calibrator'] == parameters
        used = Config.fromfile(found.folder / 'config.py').model.teacher.calibrator
        key = next(key for key, value in options.items() if value == 'fitted')
        assert used == {'type': found.name, **options, key: str(file)}
    assert {state for _, state in look(runs)} == {'done'}


def test_calibrators_are_fitted_to_a_teacher_that_has_its_row_already(study: Study) -> None:
    (teacher, *_) = expand([study])
    run([teacher])
    assert not Path('fits.txt').exists()
    runs = expand([study, fitted_study(study, 'PlattScaling')])
    assert runs[0].hash == teacher.hash
    assert look(runs)[0][1] == 'trained'
    platt = [found for found in runs if found.name == 'PlattScaling']
    run([runs[0], *platt])
    assert attempts().count(teacher.id) == 1
    assert Path('fits.txt').read_text() == 'x'
    rows = read_rows(study.results)
    assert [row['kind'] for row in rows] == ['teacher', 'student']
    # Without students to do the file is not needed.
    (teacher.folder / 'calibration' / 'temperature.json').unlink()
    assert {state for _, state in look([runs[0], *platt])} == {'done'}


def test_a_student_alone_needs_the_fitted_calibrators_first(study: Study, capsys: Any) -> None:
    runs = expand([fitted_study(study, 'PlattScaling')])
    run(expand([study])[:1])
    with pytest.raises(JobFailed):
        run(runs[1:])
    said = ' '.join(capsys.readouterr().out.split())
    assert f'needs the fitted calibrators of its teacher: run {runs[0].id}' in said


def test_a_calibrator_that_does_not_fit_the_head_is_told(study: Study, capsys: Any) -> None:
    """calkd calibrate writes Platt scaling for sigmoid heads alone."""
    code = Path('calibrate.py').read_text().replace("'platt_scaling'", "'other'")
    Path('calibrate.py').write_text(code)
    with pytest.raises(JobFailed, match='1 failed: student PlattScaling'):
        run(expand([fitted_study(study, 'PlattScaling')]))
    assert "holds no object with the key 'platt_scaling'" in ' '.join(
        capsys.readouterr().out.split()
    )


def ends_soon(pid: int) -> bool:
    for _ in range(50):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        state = Path(f'/proc/{pid}/stat')
        if state.is_file() and state.read_text().rpartition(')')[2].split()[0] == 'Z':
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize('after', [1, 3])
def test_killed_in_the_middle_it_loses_no_row_and_doubles_none(study: Study, after: int) -> None:
    runs = expand([study])
    context = multiprocessing.get_context('fork')
    process = context.Process(target=run_all, args=(runs, SLOW))
    process.start()
    deadline = time.monotonic() + 60
    while len(read_rows(study.results)) < after and time.monotonic() < deadline:
        time.sleep(0.02)
    # In the middle of the next one.
    begun = len(attempts())
    while len(attempts()) == begun and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    # The training goes with it, rather than write into the folder of the one that follows.
    assert all(ends_soon(int(path.name)) for path in Path('pids').iterdir())
    kept = [row['hash'] for row in read_rows(study.results)]
    assert after <= len(kept) < len(runs)
    tried = attempts()

    run(runs)
    rows = read_rows(study.results)
    assert [row['hash'] for row in rows][: len(kept)] == kept
    assert sorted(row['hash'] for row in rows) == sorted(found.hash for found in runs)
    again = [name for name in attempts()[len(tried) :] if name in tried]
    assert again == tried[-1:]


def test_a_half_finished_run_starts_from_nothing(study: Study) -> None:
    runs = expand([study])
    alone = next(found for found in runs if found.name == 'alone')
    alone.folder.mkdir(parents=True)
    (alone.folder / 'old').mkdir()
    (alone.folder / 'epoch_1.pth').touch()
    run([alone])
    left = {path.name for path in alone.folder.iterdir()}
    assert 'old' not in left
    assert 'epoch_1.pth' not in left


def test_a_trained_teacher_is_only_measured(study: Study) -> None:
    runs = expand([study])
    Path('measure.py').write_text('raise SystemExit(1)')
    with pytest.raises(JobFailed, match='1 failed: teacher calibrated, seed 0'):
        run(runs[:1])
    assert [state for _, state in look(runs[:1])] == ['trained']
    Path('measure.py').write_text(MEASURE)
    run(runs[:1])
    assert len(attempts()) == 1
    assert len(read_rows(study.results)) == 1


def test_what_does_not_need_a_failed_run_is_done(study: Study, capsys: Any) -> None:
    Path('fail').write_text("type='FasterRCNN'")
    runs = expand([study])
    with pytest.raises(JobFailed, match=r'5 failed: .*KD, seed 0 \(not run\)'):
        run(runs)
    assert {row['name'] for row in read_rows(study.results)} == {'alone'}
    assert 'out of luck' in capsys.readouterr().out
    Path('fail').unlink()
    run(runs)
    assert len(read_rows(study.results)) == len(runs)


def test_a_teacher_whose_weights_are_gone_is_trained_anew_for_its_students(study: Study) -> None:
    runs = expand([study])
    teacher = runs[0]
    run(runs[:1])
    (teacher.folder / 'epoch_2.pth').unlink()
    assert look(runs)[0][1] == 'to do'
    run(runs)
    assert attempts().count(teacher.id) == 2
    assert [row['kind'] for row in read_rows(study.results)].count('teacher') == 1
    # Without students to do it is not needed.
    (teacher.folder / 'epoch_2.pth').unlink()
    assert {state for _, state in look(runs)} == {'done'}


def test_one_run_is_a_teacher_that_students_still_need(study: Study) -> None:
    """Its row is there, but not its weights, or not its fitted calibrators."""
    teacher, *others = expand([study])
    run([teacher])
    (teacher.folder / 'epoch_2.pth').unlink()
    run_all([teacher, *others], MACHINE, only=teacher)
    assert attempts() == [teacher.id] * 2
    teacher, *others = expand([study, fitted_study(study, 'PlattScaling')])
    run_all([teacher, *others], MACHINE, only=teacher)
    assert Path('fits.txt').read_text() == 'x'
    assert attempts() == [teacher.id] * 2


def test_a_teacher_that_comes_out_otherwise_is_refused(study: Study, capsys: Any) -> None:
    runs = expand([study])
    run(runs[:1])
    (runs[0].folder / 'epoch_2.pth').unlink()
    other = {name: made_up.calibration(1.3, 0.05, 0.9) for name in ('held_out', 'training')}
    Path('calibration.json').write_text(json.dumps(other))
    with pytest.raises(JobFailed):
        run(runs)
    assert 'came out otherwise than its row' in capsys.readouterr().out


@pytest.mark.parametrize(('value', 'same'), [(0.2004, True), (0.2006, False)])
def test_a_teacher_is_the_same_if_its_rounded_row_is(
    study: Study, value: float, same: bool
) -> None:
    """Rows of earlier versions hold three digits."""
    runs = expand([study])
    run(runs[:1])
    (runs[0].folder / 'epoch_2.pth').unlink()
    train = Path('train.py').read_text()
    Path('train.py').write_text(train.replace("'coco/bbox_mAP': 0.2", f"'coco/bbox_mAP': {value}"))
    with contextlib.nullcontext() if same else pytest.raises(JobFailed):
        run(runs)


def test_a_run_of_another_process_is_left_to_it(study: Study) -> None:
    runs = expand([study])
    alone = find_run(runs, next(found.id for found in runs if found.name == 'alone'))
    alone.folder.mkdir(parents=True)
    with (alone.folder / 'lock').open('a') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(JobFailed, match='alone, seed 0'):
            run([alone])
    assert attempts() == []
    run([alone])
    assert attempts() == [alone.id]


def test_a_student_alone_on_a_cluster_needs_its_teacher_first(study: Study, capsys: Any) -> None:
    runs = expand([study])
    student = next(found for found in runs if found.name == 'KD')
    with pytest.raises(JobFailed):
        run([student])
    assert f'run {student.teacher.id} (calibrated) first' in capsys.readouterr().out
    run([student.teacher])
    run([student])
    assert len(read_rows(study.results)) == 2
    with pytest.raises(ConfigError, match="no run 'student-x'"):
        find_run(runs, 'student-x')


def test_weights_that_a_kill_left_are_deleted(study: Study) -> None:
    runs = expand([study])
    run(runs)
    left = runs[-1].folder / 'epoch_9.pth'
    left.touch()
    run(runs)
    assert not left.exists()


def test_runs_are_listed_with_what_is_done(study: Study) -> None:
    runs = expand([study])
    assert list_runs(runs).endswith('7 runs: 0 done, 0 trained, 7 to do')
    run(runs[:1])
    lines = list_runs(runs).splitlines()
    assert lines[0] == f'done     {runs[0].id}  teacher calibrated, seed 0'
    assert lines[-1] == '7 runs: 1 done, 0 trained, 6 to do'
    assert f'(needs {runs[0].id})' in lines[2]


def test_commands_are_listed_for_a_cluster(study: Study) -> None:
    runs = expand([study])
    text = list_commands(runs, ['my study.py'], ['study.target=1'])
    assert text.count("calkd study 'my study.py' --cfg-options study.target=1 --run student-") == 6
    assert text.index(runs[0].id) < text.index(runs[1].id)
    assert 'teachers=$(sbatch --parsable --array=1-1 --gpus=1 --wrap ' in text
    assert (
        'students=$(sbatch --parsable --array=1-6 --gpus=1 --dependency=afterok:$teachers' in text
    )
    run(runs)
    assert list_commands(runs, ['x.py']).startswith('# nothing to do')


def test_preparations_run_once_and_must_create_their_file(study: Study, tmp_path: Path) -> None:
    code = "import os; os.mkdir('new'); open('count', 'a').write('x'); open('new/made', 'w')"
    step = dict(command=['{python}', '-c', code], creates='new/made')
    content = dict(data=dict(version='1', held_out_ann='held_out.json', held_out_images='.'))
    made = made_up.study(tmp_path, prepare=[step], **content)
    for _ in range(2):
        prepare([made, made], {})
    assert Path('count').read_text() == 'x'
    lazy = made_up.study(tmp_path, prepare=[dict(command=['true'], creates='nothing')], **content)
    with pytest.raises(JobFailed, match='exit status 0 and without nothing'):
        prepare([lazy], {})
    content['data']['held_out_ann'] = 'gone.json'
    with pytest.raises(ConfigError, match=r"no annotation file 'gone\.json' of held-out"):
        prepare([made_up.study(tmp_path, **content)], {})


def test_gpus_are_dealt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'a GPU')
    monkeypatch.setattr(machine, 'get_compiling_cuda_version', lambda: '12.8')
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)

    def dealt(*args: Any) -> list[str]:
        return [slot['CUDA_VISIBLE_DEVICES'] for slot in look_at_machine(*args).slots]

    assert dealt(None) == ['0', '1', '2', '3']
    assert dealt(2) == ['0', '1']
    assert dealt(None, 2) == ['0,1', '2,3']
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '5,7')
    assert dealt(None) == ['5', '7']
    assert dealt(5) == ['5', '7', '5', '7', '5']
    with pytest.raises(ConfigError, match='--jobs 2 needs 4 GPUs, but there are 2'):
        look_at_machine(2, 2)
    with pytest.raises(ConfigError, match='--jobs 1 needs 3 GPUs, but there are 2'):
        look_at_machine(None, 3)
    with pytest.raises(ConfigError, match='--jobs must be at least 1'):
        look_at_machine(0)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    on_cpu = look_at_machine(3)
    assert [slot['CUDA_VISIBLE_DEVICES'] for slot in on_cpu.slots] == [''] * 3
    assert on_cpu.slots[0]['OMP_NUM_THREADS'] == os.environ.get('OMP_NUM_THREADS', '1')
    assert on_cpu.device.startswith('CPU')


def test_teachers_that_are_there_already_are_tested_not_trained(study: Study) -> None:
    Path('test.py').write_text(
        TRAIN.replace('sys.argv[3]', 'sys.argv[4]')
        .replace("(folder / 'last_checkpoint')", "(folder / 'no_checkpoint')")
        .replace("log = folder / '20260101' / 'vis_data' / 'scalars.json'", "log = folder / 'x'")
        .replace('log.parent.mkdir(parents=True)', "(folder / '1').mkdir()")
        .replace("log = folder / 'x'", "log = folder / '1' / '1.json'")
        .replace("''.join(json.dumps(line) + chr(10) for line in lines)", 'json.dumps(lines[1])')
    )
    Path('given.pth').write_bytes(b'weights')
    given = made_up.content(Path('.'))['teachers'][0] | {'checkpoint': 'given.pth'}
    made = made_up.study(
        Path('.'),
        data=dict(version='1', held_out_ann='held_out.json', held_out_images='.'),
        teachers=[given],
        cells=[dict(name='KD', teacher='calibrated', temperature=1.0, loss=made_up.KD)],
        comparisons=[],
        reliability=[],
        seeds=[0],
    )
    runs = expand([made])
    run(runs)
    assert len(read_rows(made.results)) == 2
    cfg = Config.fromfile(runs[1].folder / 'config.py')
    assert cfg.model.teacher.checkpoint == 'given.pth'
    assert Path('given.pth').is_file()
