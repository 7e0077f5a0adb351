"""A user's folder whose config the doctor finds in order, but for the teacher's random weights."""

from __future__ import annotations

from pathlib import Path

import helpers
from mmengine.config import Config

from calkd_det import config_path
from calkd_det.datasets.mini import write_mini_dataset

TEACHER = 'mini/faster-rcnn_r18-teacher_fpn_12e_mini.py'
DIGITS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
NUM_VAL = 6


def write_folder(root: Path) -> None:
    write_mini_dataset(root / 'data/mini', num_images=dict(train=8, calibration=1, val=NUM_VAL))
    model = Config.fromfile(config_path(TEACHER)).model
    helpers.save_teacher(root / 'teacher.pth', model, classes=DIGITS)
