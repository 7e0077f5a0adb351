"""The report says what the files of the runs say, on files that the tests make up."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imsave

from calkd_det.commands.demo import Plan, write_report
from calkd_det.commands.demo.curves import plot_curves
from calkd_det.commands.demo.grid import above_threshold, choose_images, is_right
from calkd_det.commands.demo.launch import Step, StepFailed, condense, run_steps
from calkd_det.commands.demo.plan import (
    CALKD,
    CALKD_AS_PLAIN,
    EVALUATIONS,
    KD,
    STUDENT,
    TEACHER,
    TRAININGS,
)
from calkd_det.commands.demo.records import (
    fingerprint,
    is_tested,
    last_checkpoint,
    move_aside,
    read_record,
    write_record,
)
from calkd_det.commands.demo.runs import Boxes, read_detections, read_metrics, read_scalars
from calkd_det.errors import ConfigError

TESTS = (*EVALUATIONS, CALKD_AS_PLAIN)
MAPS = {'teacher': 0.612, 'student': 0.401, 'kd': 0.432, 'calkd': 0.377, 'calkd-plain': 0.377}
IMAGE_IDS = [5, 3, 9]


def write_log(folder: Path, start: str, steps: dict[int, float], distilled: bool) -> None:
    lines = []
    for step, loss in steps.items():
        entry = {'lr': 0.02, 'loss': loss, 'loss_cls': loss / 2, 'time': 0.1, 'step': step}
        if distilled:
            entry |= {'loss_kd': 0.25, 'teacher_confidence': 0.75}
            entry |= {'teacher_accuracy': 0.5, 'teacher_agreement': 0.625}
        lines.append(entry)
    lines.append({'coco/bbox_mAP': 0.1, 'step': 2})  # of a validation
    path = folder / start / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))


def write_metrics(folder: Path, value: float, time: str = '20260102_000000') -> None:
    metrics = {'coco/bbox_mAP': value, 'coco/bbox_mAP_50': value + 0.1, 'coco/bbox_mAP_s': -1.0}
    path = folder / time / f'{time}.json'
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(metrics | {'time': 0.1}))


def write_data(root: Path) -> None:
    (root / 'annotations').mkdir(parents=True)
    (root / 'val').mkdir()
    coco = {
        'images': [{'id': key, 'file_name': f'{key}.jpg'} for key in IMAGE_IDS],
        'annotations': [{'image_id': 9, 'category_id': 2, 'bbox': [4, 6, 20, 10]}],
        'categories': [{'id': 1, 'name': 'zero'}, {'id': 2, 'name': 'one'}],
    }
    for split in ('train', 'calibration', 'val'):
        (root / 'annotations' / f'{split}.json').write_text(json.dumps(coco))
    for key in IMAGE_IDS:
        imsave(root / 'val' / f'{key}.jpg', np.full((32, 32, 3), 90, np.uint8))


def write_calibration(path: Path) -> None:
    path.parent.mkdir(parents=True)
    names = ('ece', 'ece_over', 'ece_under', 'mean_confidence', 'mean_accuracy')
    content = {
        'temperature': 1.234,
        'interval_95': [1.1, 1.4],
        'num_samples': 1234,
        'data': {'num_images': 8},
        'before': dict(zip(names, (0.0811, 0.07, 0.0111, 0.95, 0.9))),
        'after': dict(zip(names, (0.0222, 0.01, 0.0122, 0.91, 0.9))),
        'warnings': ['a warning of the fit'],
    }
    path.write_text(json.dumps(content))


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """A demo whose every file is made up."""
    plan = Plan(tmp_path / 'runs', tmp_path / 'data', epochs=2, train_images=40)
    write_data(plan.data)
    attempt = {'seconds': 90.0, 'seed': 0, 'epochs': 2, 'device': 'abacus', 'versions': 'torch 0'}
    for run in TRAININGS:
        folder = plan.folder(run)
        write_log(folder, '20260101_000000', {20: 2.0, 40: 1.5}, run.distilled)
        attempts = [attempt | {'command': f'train {run.name}'}]
        write_record(folder, {'fingerprint': '', 'attempts': attempts})
        plan.checkpoint(run).write_bytes(b'')
    detections = [
        {
            'img_id': key,
            'pred_instances': {
                'bboxes': np.array([[4.0, 6.0, 24.0, 16.0]]),
                'labels': np.array([1]),
                'scores': np.array([0.9]),
            },
        }
        for key in IMAGE_IDS
    ]
    for test in TESTS:
        write_metrics(plan.test_folder(test), MAPS[test.name])
        plan.predictions(test).write_bytes(pickle.dumps(detections))
    write_calibration(plan.calibration)
    return plan


def table_rows(text: str) -> dict[str, list[str]]:
    results, *_ = text.partition("## The teacher's calibration")
    rows = [line[1:-1].split('|') for line in results.splitlines() if line.startswith('|')]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def test_the_numbers_are_those_of_the_files(plan):
    report = write_report(plan)
    text = report.path.read_text('utf-8')
    assert report.path == plan.work_dir / 'demo' / 'report.md'
    for rows in (table_rows(text), table_rows(report.summary)):
        assert rows['teacher'][:4] == ['61.2', '71.2', '–', '–']
        assert rows['student alone'] == ['40.1', '50.1', '–', '–', '–', '']
        assert (rows['KD'][0], rows['KD'][-1]) == ('43.2', '+3.1')
        assert (rows['CalKD'][0], rows['CalKD'][-1]) == ('37.7', '-2.4')
        assert rows[CALKD_AS_PLAIN.title] == rows['CalKD']
    assert 'seed: 0' in text
    assert 'images: 3 train, 3 calibration, 3 val' in text
    assert 'device: abacus' in text
    assert '| teacher       |     1.5 |' in text
    assert 'On the 1,234 RoIs' in text
    assert 'least at T = 1.23 (95 % interval 1.10 to 1.40)' in text
    assert re.search(r'\| ECE +\| +8\.11 % \| +2\.22 % \|', text)
    assert '> a warning of the fit' in text
    assert '](calibration/reliability_distillation.png)' in text
    for command in ('train kd', 'calibrate_teacher.py', str(plan.predictions(CALKD_AS_PLAIN))):
        assert command in text
    for name in ('curves.png', 'detections.png'):
        assert f']({name})' in text
        assert (report.path.parent / name).stat().st_size > 10_000


def test_the_wording_does_not_depend_on_which_is_higher(plan):
    def without_numbers() -> str:
        text = re.sub(r'[+-]?\d+\.\d', '#', write_report(plan).path.read_text('utf-8'))
        return re.sub(r'date: .*', '', text)

    before = without_numbers()
    for test in TESTS:
        write_metrics(plan.test_folder(test), 0.9 - MAPS[test.name], '20260103_000000')
    assert without_numbers() == before
    assert 'One seed proves nothing' in before


def test_a_checkpoint_that_scores_differently_in_the_plain_config_is_named(plan):
    assert 'distillation: the same.' in write_report(plan).summary
    write_metrics(plan.test_folder(CALKD_AS_PLAIN), 0.376, '20260103_000000')
    assert 'NOT the same' in write_report(plan).summary


def test_without_detections_there_is_a_dash(plan):
    path = plan.test_folder(EVALUATIONS[2]) / '20260103_000000' / '20260103_000000.json'
    path.parent.mkdir()
    path.write_text('{"time": 0.1}')
    assert table_rows(write_report(plan).summary)['KD'] == ['–'] * 5 + ['']


def test_what_is_missing_is_named(plan):
    calibration = plan.calibration.rename(plan.work_dir / 'aside.json')
    with pytest.raises(ConfigError, match=r'temperature\.json is missing'):
        write_report(plan)
    calibration.rename(plan.calibration)
    plan.predictions(EVALUATIONS[0]).unlink()
    with pytest.raises(ConfigError, match=r'teacher.predictions\.pkl is missing'):
        write_report(plan)
    shutil.rmtree(plan.test_folder(CALKD_AS_PLAIN))
    with pytest.raises(ConfigError, match='calkd-plain holds no test results'):
        write_report(plan)
    plan.checkpoint(KD).unlink()
    with pytest.raises(ConfigError, match='no finished run of the KD detector'):
        write_report(plan)
    with pytest.raises(ConfigError, match='no finished run of the teacher'):
        write_report(replace(plan, work_dir=plan.work_dir / 'nowhere'))


def test_a_resumed_log_counts_from_its_last_start(tmp_path):
    write_log(tmp_path, '20260101_000000', {20: 3.0, 40: 2.5, 60: 2.4}, False)
    write_log(tmp_path, '20260101_010000', {40: 2.2, 60: 2.0}, False)
    assert {step: entry['loss'] for step, entry in read_scalars(tmp_path).items()} == {
        20: 3.0,
        40: 2.2,
        60: 2.0,
    }


def test_an_empty_or_damaged_log_is_named(tmp_path):
    with pytest.raises(ConfigError, match='no training log'):
        read_scalars(tmp_path)
    write_log(tmp_path, 'a', {20: 1.0}, False)
    (tmp_path / 'a' / 'vis_data' / 'scalars.json').write_text('{"loss": 1')
    with pytest.raises(ConfigError, match=r'scalars\.json is damaged'):
        read_scalars(tmp_path)


def test_the_newest_metrics_count(tmp_path):
    write_metrics(tmp_path, 0.2, '20260102_000000')
    write_metrics(tmp_path, 0.3, '20260103_000000')
    assert read_metrics(tmp_path)['coco/bbox_mAP'] == 0.3


def test_the_curves_leave_the_teachers_loss_out(plan):
    own, classification, distillation, diagnostics = plot_curves(
        {run.title: read_scalars(plan.folder(run)) for run in (STUDENT, KD, CALKD)}
    ).axes
    assert [list(line.get_ydata()) for line in own.lines] == [[2.0, 1.5]] + [[1.75, 1.25]] * 2
    assert [line.get_label() for line in classification.lines] == ['student alone', 'KD', 'CalKD']
    assert [list(line.get_ydata()) for line in distillation.lines] == [[0.25, 0.25]] * 2
    assert [line.get_ydata()[0] for line in diagnostics.lines] == [0.75, 0.5, 0.625] * 2


def test_images_are_chosen_by_their_ids_alone():
    assert choose_images([7, 1, 3, 5, 9, 11, 13, 15, 17, 19]) == [1, 5, 9, 13, 17]
    assert choose_images([2, 1]) == [1, 2]


def test_each_object_is_found_once_and_by_its_class():
    truth = Boxes(np.array([[0.0, 0, 10, 10], [20, 0, 30, 10]]), np.array([1, 2]))
    detections = Boxes(
        np.array(
            [[0.0, 0, 10, 9], [0, 0, 10, 10], [20, 0, 30, 10], [26, 0, 36, 10], [20, 0, 30, 9]]
        ),
        np.array([1, 1, 1, 2, 2]),
        np.array([0.7, 0.9, 0.8, 0.6, 0.3]),
    )
    shown = above_threshold(detections)
    assert shown.scores.tolist() == [0.9, 0.8, 0.7, 0.6, 0.3]
    assert is_right(shown, truth).tolist() == [True, False, False, False, True]
    none = Boxes(np.zeros((0, 4)), np.zeros(0, int))
    assert is_right(shown, none).tolist() == [False] * 5
    assert is_right(above_threshold(replace(detections, scores=np.zeros(5))), truth).size == 0


def test_detections_are_read_by_image_id(plan):
    boxes = read_detections(plan.predictions(EVALUATIONS[0]))
    assert list(boxes) == IMAGE_IDS
    assert boxes[9].xyxy.tolist() == [[4, 6, 24, 16]]


def test_default_commands_are_a_users_own():
    plan = Plan()
    command = plan.train_command(CALKD)
    assert command[1].endswith('.mim/tools/train.py')
    assert command[2].endswith(CALKD.config)
    assert command[3:] == ['--cfg-options', 'randomness.seed=0']
    assert '--cfg-options' not in plan.test_command(CALKD_AS_PLAIN)
    assert plan.checkpoint(TEACHER).as_posix() == (
        'work_dirs/faster-rcnn_r18-teacher_fpn_12e_mini/epoch_12.pth'
    )


def test_other_arguments_reach_the_commands():
    plan = Plan(Path('w'), Path('d'), epochs=3, train_images=64)
    words = plan.train_command(KD, resume_from=Path('epoch_1.pth'))
    assert words[3:7] == ['--work-dir', f'w/{KD.stem}', '--resume', 'epoch_1.pth']
    assert {
        'train_dataloader.dataset.data_root=d/',
        'val_evaluator.ann_file=d/annotations/val.json',
        'train_cfg.max_epochs=3',
        'param_scheduler.0.end=6',
        'param_scheduler.1.milestones=[2,3]',
        f'model.teacher.checkpoint=w/{TEACHER.stem}/epoch_3.pth',
    } < set(words)
    assert not any('teacher.checkpoint' in word for word in plan.train_command(STUDENT))
    with pytest.raises(ConfigError, match='--epochs must be at least 1'):
        Plan(epochs=0)


def test_a_fingerprint_changes_with_what_decides_a_training(tmp_path):
    def write_manifest(folder: str, digest: str) -> Path:
        (tmp_path / folder).mkdir()
        manifest = {'annotations_sha256': {'train': digest}}
        (tmp_path / folder / 'mini_dataset.json').write_text(json.dumps(manifest))
        return tmp_path / folder

    plan = Plan(data=write_manifest('a', '1'))
    prints = [fingerprint(plan, run) for run in TRAININGS]
    assert len(set(prints)) == 4
    elsewhere = replace(plan, work_dir=Path('w'), data=write_manifest('b', '1'))
    assert [fingerprint(elsewhere, run) for run in TRAININGS] == prints
    for other in (
        replace(plan, epochs=3),
        replace(plan, seed=1),
        replace(plan, data=write_manifest('c', '2')),
    ):
        assert not {fingerprint(other, run) for run in TRAININGS} & set(prints)


def test_a_run_is_finished_by_the_checkpoint_that_it_names(tmp_path):
    assert last_checkpoint(tmp_path) is None
    (tmp_path / 'last_checkpoint').write_text('/moved/since/then/epoch_2.pth')
    assert last_checkpoint(tmp_path) is None
    (tmp_path / 'epoch_2.pth').write_bytes(b'')
    assert last_checkpoint(tmp_path) == tmp_path / 'epoch_2.pth'


def test_what_was_trained_is_kept(tmp_path):
    folder = tmp_path / 'run'
    assert read_record(folder) is None
    write_record(folder, {'fingerprint': 'x'})
    assert read_record(folder) == {'fingerprint': 'x'}
    target = move_aside(folder)
    assert not folder.exists()
    assert read_record(target) == {'fingerprint': 'x'}


def test_a_test_older_than_its_checkpoint_is_repeated(plan):
    assert all(is_tested(plan, test) for test in TESTS)
    plan.checkpoint(CALKD).write_bytes(b'trained again')
    assert not is_tested(plan, CALKD_AS_PLAIN)
    assert is_tested(plan, EVALUATIONS[0])
    plan.predictions(EVALUATIONS[0]).unlink()
    assert not is_tested(plan, EVALUATIONS[0])


def test_the_log_is_condensed():
    line = (
        '11/24 22:21:28 - mmengine - INFO - Epoch(train)  [1][ 30/100]  lr: 5.8e-03  '
        'eta: 1 day, 0:15:27  time: 0.7926  grad_norm: 4.7  loss: 1.5935  loss_cls: 0.8603'
    )
    assert condense(line) == 'epoch  1  iteration  30/100  loss 1.5935  eta 1 day, 0:15:27'
    line = 'mmengine - INFO - Epoch(val) [12][38/38]    coco/bbox_mAP: 0.3450  coco/bbox_mAP_50: 1'
    assert condense(line) == 'mAP 0.3450'
    assert condense('Loads checkpoint by local backend') is None


def python_step(tmp_path: Path, name: str, code: str, *needs: str) -> Step:
    command = [sys.executable, '-c', code]
    return Step(name, name, needs, tmp_path / f'{name}.log', lambda: command)


def test_steps_wait_for_what_they_need(tmp_path, capsys):
    a = python_step(tmp_path, 'a', f'open({str(tmp_path / "made")!r}, "w"); print("hello")')
    b = python_step(tmp_path, 'b', f'open({str(tmp_path / "made")!r})', 'a', 'done-before')
    run_steps([b, a], {}, jobs=2)
    assert (tmp_path / 'a.log').read_text() == 'hello\n'
    out = capsys.readouterr().out
    assert out.index('[2/2 a] done') < out.index('[1/2 b] done')


def test_a_failed_step_shows_its_log_and_stops_the_others(tmp_path, capsys):
    slow = python_step(tmp_path, 'slow', 'import time; time.sleep(60)')
    bad = python_step(tmp_path, 'bad', 'print(*range(99), sep="\\n"); raise SystemExit(3)')
    never = python_step(tmp_path, 'never', '', 'bad')
    with pytest.raises(StepFailed, match=r'^bad ended with exit status 3; .*bad\.log\.$'):
        run_steps([slow, bad, never], {}, jobs=2)
    assert capsys.readouterr().out.splitlines()[-30:] == [str(number) for number in range(69, 99)]
    assert not (tmp_path / 'never.log').exists()


def test_what_does_not_need_a_failed_step_goes_on(tmp_path, capsys):
    bad = python_step(tmp_path, 'bad', 'raise SystemExit(3)')
    lost = [
        python_step(tmp_path, 'lost', '', 'bad'),
        python_step(tmp_path, 'lost too', '', 'lost'),
    ]
    good = python_step(tmp_path, 'good', 'print("hello")')
    with pytest.raises(StepFailed, match=r'^3 failed: bad; lost \(not run\); lost too \(not run\)'):
        run_steps([bad, *lost, good], {}, jobs=1, keep_going=True, verbose=False)
    assert (tmp_path / 'good.log').read_text() == 'hello\n'
    assert 'bad ended with exit status 3' in capsys.readouterr().out


def test_each_place_has_its_own_variables(tmp_path):
    code = 'import os, time; time.sleep(0.4); print(os.environ["PLACE"], os.environ["ALL"])'
    steps = [python_step(tmp_path, name, code) for name in 'abc']
    run_steps(steps, {'ALL': 'x'}, jobs=2, slots=[{'PLACE': '0'}, {'PLACE': '1'}])
    places = [(tmp_path / f'{name}.log').read_text() for name in 'abc']
    assert places[:2] == ['0 x\n', '1 x\n']
    assert places[2] in places[:2]


def test_success_is_told_and_all_is_released(tmp_path):
    told = []

    def step(name: str, code: str) -> Step:
        return replace(
            python_step(tmp_path, name, code),
            succeed=lambda seconds: told.append(f'{name} succeeded'),
            release=lambda: told.append(f'{name} released'),
        )

    nothing = replace(step('nothing', ''), begin=lambda: None)
    steps = [nothing, step('bad', 'raise SystemExit(1)'), step('good', '')]
    with pytest.raises(StepFailed, match='1 failed: bad'):
        run_steps(steps, {}, jobs=1, keep_going=True)
    assert told == ['bad released', 'good succeeded', 'good released']


@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere no kernel ends them')
def test_a_step_ends_with_a_process_that_is_killed(tmp_path):
    pid = tmp_path / 'pid'
    code = f'import os, time; open({str(pid)!r}, "w").write(str(os.getpid())); time.sleep(60)'
    process = multiprocessing.get_context('fork').Process(
        target=run_steps, args=([python_step(tmp_path, 'a', code)], {}, 1)
    )
    process.start()
    deadline = time.monotonic() + 30
    while not (pid.is_file() and pid.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    stat = Path('/proc', pid.read_text(), 'stat')
    while time.monotonic() < deadline:
        if not stat.is_file() or stat.read_text().rpartition(')')[2].split()[0] == 'Z':
            break
        time.sleep(0.05)
    else:
        pytest.fail('it still runs')
