from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from calkd_det import config_path
from calkd_det.config import check_number
from calkd_det.errors import CalKDError, ConfigError, TeacherError


def test_config_path_serves_as_a_base_from_anywhere(tmp_path: Path) -> None:
    own = tmp_path / 'mine.py'
    own.write_text(
        "_base_ = __import__('calkd_det').config_path("
        "'faster_rcnn/calkd_faster-rcnn_r101-r50_fpn_8xb1-ms-180k_coco.py')\n"
        'model = dict(teacher=dict(calibrator=dict(temperature=2.0)))\n'
    )
    model = Config.fromfile(own).model
    assert model.type == 'CalKDFasterRCNN'
    assert model.teacher.calibrator == dict(type='TemperatureScaling', temperature=2.0)


def test_config_path_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r'did you mean .*mini/calkd_faster-rcnn'):
        config_path('mini/calkd_faster-rcn_r18-teacher-student_fpn_12e_mini.py')


def test_numbers() -> None:
    assert check_number(2, 'a.b') == 2.0
    assert check_number(0, 'a.b', minimum_open=False) == 0.0
    with pytest.raises(ConfigError, match=r'a\.b must be a finite number > 0, or a path, but is 0'):
        check_number(0, 'a.b', hint='or a path')


def test_errors_survive_being_raised_again_with_a_longer_message() -> None:
    # Some versions of mmengine's registry raise type(error)(f'...: {error}').
    for error in (ConfigError('a'), TeacherError('a')):
        assert isinstance(type(error)(f'class `X`: {error}'), CalKDError)
