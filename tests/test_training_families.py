"""A short real training of a pair of each family on the mini data, through mmengine's Runner."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.visualization import Visualizer

from calkd_det import config_path
from calkd_det.datasets.mini import write_mini_dataset

CONFIGS = (
    'calkd-cwd_faster-rcnn_r18-teacher-student_fpn_12e_mini',
    'calkd-ld_gfl_r18-teacher-student_fpn_12e_mini',
    'calkd_cascade-rcnn_r18-teacher-student_fpn_12e_mini',
    'calkd_retinanet_r18-teacher-student_fpn_12e_mini',
    'calkd_fcos_r18-teacher-student_fpn_12e_mini',
    'calkd_atss_r18-teacher-student_fpn_12e_mini',
    'calkd_gfl_r18-teacher-student_fpn_12e_mini',
    'calkd_rtmdet_tiny-teacher-student_12e_mini',
    'calkd_yolox_tiny-teacher-student_12e_mini',
    'calkd_dino_r18-teacher-student_12e_mini',
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def teachers(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Trains the teacher of a config, once, and returns its checkpoint."""

    @cache
    def trained(config: str) -> str:
        folder = tmp_path_factory.mktemp(Path(config).stem)
        train(Config.fromfile(config), data, folder, epochs=4)
        return str(folder / 'epoch_4.pth')

    return trained


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('mini')
    write_mini_dataset(folder, num_images=dict(train=24, calibration=1, val=1), image_size=96)
    return folder


def train(cfg: Config, data: Path, work_dir: Path, epochs: int) -> list[dict[str, float]]:
    """Trains on 24 images, four a step, and returns what the log tells of each step."""
    loader = cfg.train_dataloader
    loader.update(batch_size=4, num_workers=0, persistent_workers=False)
    loader.dataset.data_root = f'{data}/'
    for step in loader.dataset.pipeline:
        # A YOLOX does not find enough in smaller images within these steps.
        if step.type == 'RandomResize' and 'YOLOX' not in cfg.model.type:
            step.scale = [(64, 64), (96, 96)]
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    cfg.train_cfg.max_epochs = epochs
    cfg.param_scheduler = None  # no warm-up longer than the training
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.checkpoint.interval = epochs
    cfg.work_dir = str(work_dir)
    cfg.randomness = dict(seed=0)
    cfg.experiment_name = work_dir.name
    for cls in (Visualizer, DetLocalVisualizer):  # mmengine keeps them, and their folders, by name
        cls._instance_dict.clear()
    Runner.from_cfg(cfg).train()
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.parametrize('name', CONFIGS)
def test_a_student_comes_closer_to_its_teacher(
    name: str, data: Path, teachers: Callable[[str], str], tmp_path: Path
) -> None:
    cfg = Config.fromfile(config_path(f'mini/{name}.py'))
    cfg.model.teacher.checkpoint = teachers(cfg.model.teacher.config)
    distillation = cfg.model.distillation
    for loss in [distillation] if 'type' in distillation else distillation.values():
        if loss.type != 'KDLoss':
            loss.loss_weight = 10.0  # few steps: to follow the teacher above all

    logs = train(cfg, data, tmp_path / f'{name}-student', epochs=6)
    assert len(logs) == 36
    losses = {key for key in logs[0] if 'loss_kd' in key}
    assert losses
    for key in losses:
        values = [row[key] for row in logs]
        # The boxes of matched queries move slowly: 36 steps are few for a transformer.
        slow = cfg.model.type == 'CalKDDINO' and key == 'loss_kd_bbox'
        assert np.mean(values[-6:]) < (0.95 if slow else 0.7) * np.mean(values[:3]), key
