"""``calkd study`` with real trainings, killed in the middle and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from calkd_cli.main import main
from calkd_det.commands.study.report import PARTS

# The smoke study, smaller still.
STUDY = """
_base_ = __import__('calkd_det').config_path('studies/smoke.py')
short = {'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 1}
kd = dict(teacher='t', loss=dict(type='KDLoss'))
study = dict(
    data=dict(mini=dict(num_images=dict(train=16, calibration=8, val=8))),
    student=dict(cfg_options=short),
    teachers=[{**_base_.study.teachers[0], 'name': 't'}],
    cells=[
        dict(name='alone'),
        dict(name='KD', temperature='fitted', **kd),
        dict(
            name='bias',
            calibrator=dict(type='BackgroundBiasScaling', parameters='fitted'),
            seeds=[0],
            **kd,
        ),
    ],
    question='Does it run?',
    primary=dict(of='KD', to='alone', metric='ECE on objects'),
    comparisons=[dict(of='KD', to='alone'), dict(of='bias', to='KD')],
    measure_students=True,
    figures=['paired', 'reliability'],
    reliability=['t'],
)
"""


@pytest.mark.slow
@pytest.mark.usefixtures('forked_jobs')  # those after the kill
def test_a_study_survives_a_kill_and_makes_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    Path('tiny.py').write_text(STUDY)

    def study(*arguments: str) -> str:
        code = main(['study', 'tiny.py', *arguments])
        said = capfd.readouterr()
        assert code == 0, said.out + said.err
        return said.out

    assert study('--dry-run').endswith('6 runs: 0 done, 0 trained, 6 to do\n')

    results = tmp_path / 'work_dirs' / 'study-smoke' / 'results.jsonl'
    process = subprocess.Popen(
        [sys.executable, '-u', '-m', 'calkd_cli', 'study', 'tiny.py', '--jobs', '1'],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith('[2/6]'):
            break
    # While the third run trains: its log has begun.
    folder = results.parent
    deadline = time.monotonic() + 60
    while len(list(folder.glob('*/run.log'))) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    kept = results.read_text().splitlines()
    assert len(kept) == 2, ''.join(said)
    # A kill while a row is written leaves a part of it.
    results.write_text('\n'.join(kept) + '\n' + kept[1][:40])

    said = study('--jobs', '2')
    assert '2 of 6 runs are done; 4 to do, 2 at a time' in said
    lines = results.read_text().splitlines()
    assert lines[:2] == kept
    rows = [json.loads(line) for line in lines]
    assert Counter(row['hash'] for row in rows).most_common(1)[0][1] == 1
    runs = Counter((row['kind'], row['name'], row['seed']) for row in rows)
    students = {('student', name, seed) for name in ('alone', 'KD') for seed in (0, 1)}
    assert set(runs) == {('teacher', 't', 0), *students, ('student', 'bias', 0)}
    assert 'nothing to do' in study()

    # The same seed: the same weights at the start, the same images in the same order.
    starts = {
        seed: {
            (row['fingerprint']['initial_weights'], row['fingerprint']['data_order'])
            for row in rows
            if row['kind'] == 'student' and row['seed'] == seed
        }
        for seed in (0, 1)
    }
    assert [len(found) for found in starts.values()] == [1, 1]
    assert not starts[0] & starts[1]
    assert all(row['fingerprint']['iterations'] == 2 for row in rows if row['kind'] == 'student')
    figures = [row['metrics']['mAP'] for row in rows]
    assert any(figure != round(figure, 3) for figure in figures)
    teacher = next(row for row in rows if row['kind'] == 'teacher')
    held_out = teacher['calibration']['held_out']
    assert (held_out['images'], teacher['calibration']['training']['images']) == (8, 8)
    fitted = next(row for row in rows if row['name'] == 'KD')
    assert fitted['teacher']['T'] == held_out['temperature']
    bias = next(row for row in rows if row['name'] == 'bias')
    assert set(bias['teacher']['calibrator']) == {'temperature', 'bias'}
    for row in rows:
        if row['kind'] == 'student':
            measured = row['classifier']
            assert measured['images'] == 8
            assert 0 < measured['objects']['samples'] < measured['distillation']['samples']
    at = held_out['at']
    assert at['fitted']['nll'] <= at['1']['nll']
    assert at['1']['ece'] == pytest.approx(at['1']['ece_over'] + at['1']['ece_under'])
    assert not list(folder.glob('student-*/*.pth'))
    assert len(list(folder.glob('teacher-*/*.pth'))) == 1

    files = [tmp_path / line for line in study('--report').split()]
    assert {path.suffix for path in files} == {'.md', '.png'}
    before = [path.read_bytes() for path in files]
    page = next(path for path in files if path.suffix == '.md').read_text('utf-8')
    assert all(f'<!-- begin smoke {part} -->' in page for part in PARTS)
    assert '5 of 5 student runs' in page
    assert '**Primary comparison**, by ECE on objects: ' in page
    study('--report')
    assert [path.read_bytes() for path in files] == before
