from __future__ import annotations

from pathlib import Path

import helpers
import pytest
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict

from calkd_det import config_path
from calkd_det.config import build_from_config, check_number
from calkd_det.errors import CalKDError, ConfigError, TeacherError
from calkd_det.teachers.frozen_teacher import build_detector
from calkd_det.teachers.source import TeacherSource


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


# Configs that inherit

CALKD = """
model = dict(
    type='CalKDFasterRCNN',
    teacher=dict(config='t.py', checkpoint='t.pth', calibrator=dict(
        type='TemperatureScaling', temperature=1.5)),
    distillation=dict(type='KDLoss', tau=4.0))
"""
PLAIN = "model = dict(type='FasterRCNN')"


def inherited(tmp_path: Path, base: str, own: str) -> ConfigDict:
    (tmp_path / 'base.py').write_text(base)
    (tmp_path / 'own.py').write_text(f"_base_ = 'base.py'\n{own}")
    model = Config.fromfile(tmp_path / 'own.py').model
    teacher, distillation = model.pop('teacher'), model.pop('distillation')
    return helpers.detector_config(model.type, teacher=teacher, distillation=distillation)


@pytest.mark.parametrize('base', [PLAIN, CALKD], ids=['no_key_in_the_base', 'replaced'])
@pytest.mark.parametrize(
    'distillation',
    [
        "dict(_delete_=True, type='DKDLoss')",
        "dict(_delete_=True, cls=dict(_delete_=True, type='DKDLoss'))",
    ],
    ids=['one', 'by_name'],
)
def test_delete_works_whether_the_base_has_the_key_or_not(
    distillation: str, base: str, tmp_path: Path
) -> None:
    own = f"""
model = dict(
    type='CalKDFasterRCNN',
    teacher=dict(
        _delete_=True, config=dict(_delete_=True, model=dict(_delete_=True, type='FasterRCNN')),
        checkpoint='own.pth', calibrator=dict(_delete_=True, type='ClassTemperatureScaling',
        temperatures=[1.0, 2.0])),
    distillation={distillation})
"""
    detector = helpers.build(inherited(tmp_path, base, own))
    assert detector.teacher.config == dict(model=dict(type='FasterRCNN'))
    assert detector.teacher.calibrator.temperatures.tolist() == [1.0, 2.0]
    assert [type(loss).__name__ for loss in detector.distillation.values()] == ['DKDLoss']


@pytest.mark.parametrize(
    ('own', 'key', 'name'),
    [
        (
            "teacher=dict(calibrator=dict(type='ClassTemperatureScaling', temperatures=[1.0]))",
            'teacher.calibrator',
            'temperature',
        ),
        ("distillation=dict(type='MLLDLoss')", 'distillation', 'tau'),
        ("distillation=dict(cls=dict(type='KDLoss'))", 'distillation', 'cls'),
    ],
)
def test_a_key_that_is_inherited_by_mistake_says_where_it_comes_from(
    own: str, key: str, name: str, tmp_path: Path
) -> None:
    message = (
        rf"model\.{key} has no key '{name}': \w+ does not take it, .*\. What your own config "
        rf'does not write, .* comes from its base config, .* write {key.rpartition(".")[2]}='
        r'dict\(_delete_=True, \.\.\.\)'
    )
    with pytest.raises(ConfigError, match=message):
        helpers.build(inherited(tmp_path, CALKD, f'model = dict({own})'))


def test_a_type_that_is_inherited_by_mistake_is_named(tmp_path: Path) -> None:
    base = CALKD.replace("'TemperatureScaling', temperature=1.5", "'ClassTemperatureScaling'")
    own = 'model = dict(teacher=dict(calibrator=dict(temperature=2.0)))'
    with pytest.raises(
        ConfigError, match=r'ClassTemperatureScaling does not take it, .*\. What your'
    ):
        helpers.build(inherited(tmp_path, base, own))


def test_losses_that_are_inherited_beside_one_are_named(tmp_path: Path) -> None:
    base = CALKD.replace("type='KDLoss', tau=4.0", "cls=dict(type='KDLoss')")
    with pytest.raises(ConfigError, match=r"model\.distillation has no key 'cls': .* base config"):
        helpers.build(inherited(tmp_path, base, "model = dict(distillation=dict(type='KDLoss'))"))


def test_a_slip_of_the_pen_is_not_taken_for_inheritance() -> None:
    cfg = dict(type='KDLoss', tua=2.0)
    with pytest.raises(ConfigError, match=r"'tua': did you mean 'tau'\?$"):
        build_from_config(MODELS, cfg, 'model.distillation')


def test_a_teachers_model_that_was_merged_says_what_to_write() -> None:
    model = helpers.detector_config('RetinaNet', base_channels=4)
    source = TeacherSource(model=model, checkpoint='t.pth', classes=None)
    with pytest.raises(TeacherError, match=r'unexpected keyword .* write config=dict\(_delete_='):
        build_detector(source)
