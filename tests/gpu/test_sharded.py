"""mmengine's FSDPStrategy, which asks for a CUDA device: mmdet's train.py on one rank."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mmdet
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from calkd_det import config_path
from calkd_det.datasets.mini import write_mini_dataset

TRAIN = Path(mmdet.__file__).parent / '.mim' / 'tools' / 'train.py'

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='torch finds no CUDA device'),
]


def test_a_sharded_run_writes_the_plain_detectors_checkpoint(tmp_path: Path) -> None:
    write_mini_dataset(tmp_path / 'data/mini', num_images=dict(train=8, calibration=1, val=2))
    teacher = Config.fromfile(config_path('mini/faster-rcnn_r18-teacher_fpn_12e_mini.py'))
    meta = dict(dataset_meta=dict(classes=teacher.classes))
    weights = MODELS.build(teacher.model).state_dict()
    torch.save(dict(state_dict=weights, meta=meta), tmp_path / 'teacher.pth')
    cfg = Config.fromfile(config_path('mini/calkd_faster-rcnn_r18-teacher-student_fpn_12e_mini.py'))
    cfg.merge_from_dict(
        {
            'model.teacher.checkpoint': 'teacher.pth',
            'train_cfg.max_epochs': 1,
            'train_cfg.val_interval': 2,
            'train_dataloader.batch_size': 4,
            'train_dataloader.num_workers': 0,
            'train_dataloader.persistent_workers': False,
            'runner_type': 'FlexibleRunner',
            'strategy': dict(type='FSDPStrategy', state_dict_cfg='full'),
        }
    )
    cfg.dump(tmp_path / 'sharded.py')
    launch = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=1', str(TRAIN)]
    done = subprocess.run(
        [sys.executable, *launch, 'sharded.py', '--work-dir=run', '--launcher=pytorch'],
        cwd=tmp_path,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    plain = MODELS.build(
        Config.fromfile(config_path('mini/faster-rcnn_r18-student_fpn_12e_mini.py')).model
    )
    trained = torch.load(tmp_path / 'run' / 'epoch_1.pth', weights_only=False)
    plain.load_state_dict(trained['state_dict'])
