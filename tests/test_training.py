"""Real training and testing on the mini data, through mmdet's own scripts."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import mmdet
import pytest
import torch
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.logging import HistoryBuffer
from mmengine.registry import MODELS
from mmengine.visualization import Visualizer

from calkd_det import config_path
from calkd_det.datasets.mini import write_mini_dataset
from calkd_det.errors import TeacherError

TOOLS = Path(mmdet.__file__).parent / '.mim' / 'tools'
TEACHER = 'mini/faster-rcnn_r18-teacher_fpn_12e_mini.py'
STUDENT = 'mini/faster-rcnn_r18-student_fpn_12e_mini.py'
CALKD = 'mini/calkd_faster-rcnn_r18-teacher-student_fpn_12e_mini.py'

# What a user would write: another teacher, and the calibration of teacher and student in the log.
OWN_CONFIG = f"""
_base_ = __import__('calkd_det').config_path('{CALKD}')
model = dict(teacher=dict(checkpoint='teacher/epoch_1.pth'))
custom_hooks = [dict(type='TeacherCalibrationHook', interval=1)]
val_evaluator = [
    _base_.val_evaluator,
    dict(type='DetectionCalibration', ann_file=_base_.val_evaluator.ann_file),
]
"""

pytestmark = pytest.mark.slow


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with data/mini in it."""
    monkeypatch.chdir(tmp_path)
    write_mini_dataset('data/mini', num_images=dict(train=24, calibration=8, val=16))
    return tmp_path


@pytest.fixture
def mmdet_tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(script: str, *args: str, epochs: int = 1) -> None:
        options = [f'train_cfg.max_epochs={epochs}', f'train_cfg.val_interval={epochs + 1}']
        options += ['train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False']
        options += ['val_dataloader.num_workers=0', 'val_dataloader.persistent_workers=False']
        options += ['test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False']
        options += ['default_hooks.logger.interval=1', 'default_hooks.checkpoint.max_keep_ckpts=9']
        options += [arg for arg in args if '=' in arg and not arg.startswith('--')]
        own = [arg for arg in args if arg not in options]
        argv = [script, *own, '--cfg-options', *options]
        monkeypatch.setattr(sys, 'argv', argv)
        # As in a process of its own: mmengine keeps visualizers, and their folders, by name.
        for cls in (Visualizer, DetLocalVisualizer):
            cls._instance_dict.clear()
        runpy.run_path(str(TOOLS / script), run_name='__main__')

    return run


def scalars(work_dir: Path) -> list[dict[str, float]]:
    logs = sorted(work_dir.glob('*/vis_data/scalars.json'))
    return [json.loads(line) for log in logs for line in log.read_text().splitlines()]


def test_train_resume_and_test_with_the_plain_config(work: Path, mmdet_tool: Any) -> None:
    # A Runner's own checkpoint, log buffers and all, serves as the teacher.
    mmdet_tool('train.py', config_path(TEACHER), '--work-dir=teacher')
    content = torch.load('teacher/epoch_1.pth')
    buffers = content['message_hub']['log_scalars'].values()
    assert any(isinstance(value, HistoryBuffer) for value in buffers)

    own = Path('own.py')
    own.write_text(OWN_CONFIG)
    mmdet_tool('train.py', str(own), '--work-dir=calkd')
    mmdet_tool('train.py', str(own), '--work-dir=calkd', '--resume', epochs=2)
    logs = [row for row in scalars(work / 'calkd') if 'loss_kd' in row]
    assert [row['iter'] for row in logs] == [1, 2, 3, 4, 5, 6]
    assert all(row['loss_kd'] > 0 for row in logs)
    assert all(0 <= row['teacher_accuracy'] <= 1 for row in logs)
    parts = [
        row['teacher_ece'] - row['teacher_ece_over'] - row['teacher_ece_under'] for row in logs
    ]
    assert parts == pytest.approx([0] * 6)
    evaluated = [row for row in scalars(work / 'calkd') if 'calibration/D-ECE_IoU50' in row]
    assert [row['step'] for row in evaluated] == [1, 2]

    # The checkpoint is the plain student's.
    plain = MODELS.build(Config.fromfile(config_path(STUDENT)).model)
    plain.load_state_dict(torch.load('calkd/epoch_2.pth')['state_dict'], strict=True)

    # It is tested without the teacher, by either config, to the same figures.
    Path('teacher/epoch_1.pth').unlink()
    results = {}
    for name, config in (('calkd', CALKD), ('plain', STUDENT)):
        every_box = 'model.test_cfg.rcnn.score_thr=0.0'
        mmdet_tool(
            'test.py', config_path(config), 'calkd/epoch_2.pth', f'--out={name}.pkl', every_box
        )
        results[name] = [sample['pred_instances'] for sample in load(f'{name}.pkl')]
    assert sum(len(boxes['scores']) for boxes in results['plain']) > 100
    for ours, theirs in zip(results['calkd'], results['plain'], strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in ('bboxes', 'scores', 'labels'))


def test_a_bad_teacher_stops_before_the_first_step(work: Path, mmdet_tool: Any) -> None:
    with pytest.raises(TeacherError, match=r"model\.teacher\.checkpoint: there is no file 'none"):
        mmdet_tool(
            *('train.py', config_path(CALKD), '--work-dir=calkd'),
            'model.teacher.checkpoint=none.pth',
        )
    assert not scalars(work / 'calkd')
    assert not list((work / 'calkd').glob('*.pth'))


def test_other_classes_stop_before_the_first_step(work: Path, mmdet_tool: Any) -> None:
    teacher = MODELS.build(Config.fromfile(config_path(TEACHER)).model)
    classes = tuple('abcdefghij')
    content = dict(state_dict=teacher.state_dict(), meta=dict(dataset_meta=dict(classes=classes)))
    torch.save(content, 'teacher.pth')
    with pytest.raises(ValueError, match="does not know 10 of the student's classes: zero"):
        mmdet_tool(
            *('train.py', config_path(CALKD), '--work-dir=calkd'),
            'model.teacher.checkpoint=teacher.pth',
        )
