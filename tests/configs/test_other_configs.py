"""The configs of the mini data set and the examples say what they are, and build."""

from __future__ import annotations

import copy
from pathlib import Path

import helpers
import pytest
from mmdet.datasets import CocoDataset
from mmdet.registry import MODELS
from mmengine.config import Config

from calkd_det import config_path

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
FILES = sorted([*CONFIGS.glob('mini/*.py'), *CONFIGS.glob('examples/*.py')])
STUDENT = 'mini/faster-rcnn_r18-student_fpn_12e_mini.py'
DISTILLED = 'mini/{}_faster-rcnn_r18-teacher-student_fpn_12e_mini.py'
COCO = 'faster_rcnn/calkd_faster-rcnn_r101-r18_fpn_8xb1-ms-180k_coco.py'


def read(name: str) -> Config:
    return Config.fromfile(config_path(name))


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_every_config_builds(path: Path) -> None:
    model = copy.deepcopy(Config.fromfile(path).model)
    model.backbone.init_cfg = None  # nothing is downloaded
    detector = MODELS.build(model)
    assert (getattr(detector, 'teacher', None) is not None) == ('teacher' in model)


def test_the_distilled_students_are_the_plain_one_with_a_teacher() -> None:
    plain = read(STUDENT)
    for method, temperature in (('kd', 1.0), ('calkd', 1.5)):
        cfg = read(DISTILLED.format(method))
        teacher = cfg.model.pop('teacher')
        assert teacher.calibrator == dict(type='TemperatureScaling', temperature=temperature)
        assert Path(teacher.config).name == 'faster-rcnn_r18-teacher_fpn_12e_mini.py'
        assert cfg.model.pop('distillation') == dict(type='KDLoss', tau=1.0, loss_weight=1.0)
        assert cfg.model.pop('type') == 'CalKDFasterRCNN'
        assert plain.model.type == 'FasterRCNN'
        assert cfg.model == {key: value for key, value in plain.model.items() if key != 'type'}
        for key in ('train_dataloader', 'optim_wrapper', 'param_scheduler', 'train_cfg'):
            assert cfg[key] == plain[key]


def parts(value: object, path: str = '') -> set[str]:
    """Every key of a config with its value, numbers left out."""
    if isinstance(value, dict):
        return set().union(*(parts(v, f'{path}.{k}') for k, v in value.items()), {path})
    if isinstance(value, (list, tuple)) and any(isinstance(v, dict) for v in value):
        return set().union(*(parts(v, f'{path}[]') for v in value))
    return {f'{path} = {value}' if isinstance(value, str) else path}


def test_the_mini_model_differs_from_coco_only_in_sizes_and_training_from_scratch() -> None:
    mini, coco = read(DISTILLED.format('calkd')).model, read(COCO).model
    for model in (mini, coco):
        model.pop('teacher')
        model.backbone.pop('init_cfg')
    # mmdet's default width is not written out.
    assert parts(mini.to_dict()) ^ parts(coco.to_dict()) == {'.backbone.base_channels'}


def test_the_mini_splits_are_the_right_ones() -> None:
    cfg = read(STUDENT)
    assert cfg.train_dataloader.dataset.ann_file == 'annotations/train.json'
    assert cfg.test_dataloader.dataset.ann_file == 'annotations/val.json'
    assert cfg.test_evaluator.ann_file == 'data/mini/annotations/val.json'
    assert cfg.test_dataloader.dataset.test_mode


def test_a_students_classes_may_be_some_of_the_teachers(tmp_path: Path) -> None:
    cfg = read('examples/subset_of_the_teachers_classes.py')
    coco = CocoDataset.METAINFO['classes']
    own = cfg.train_dataloader.dataset.metainfo.classes
    # In COCO's order, which an annotation file cut out of COCO's numbers labels by.
    assert list(own) == [name for name in coco if name in own]
    assert len(own) < len(coco)
    assert cfg.val_dataloader.dataset.metainfo.classes == own
    assert cfg.test_evaluator.ann_file == 'data/street/annotations/val.json'

    small = helpers.detector_config(num_classes=len(coco))  # in the place of the zoo's
    helpers.save_teacher(tmp_path / 'teacher.pth', small, classes=coco)
    cfg.model.teacher.update(
        config=dict(model=small.to_dict()), checkpoint=str(tmp_path / 'teacher.pth')
    )
    cfg.model.backbone.init_cfg = None
    detector = MODELS.build(cfg.model)
    detector.dataset_meta = dict(classes=own)
    detector.init_weights()
    losses = helpers.loss(detector.train(), helpers.batch(num_classes=len(own)))
    assert losses['loss_kd'] > 0
    class_map = detector.teacher.network.class_map
    assert [coco[column] for column in class_map.columns] == list(own)
    assert class_map.num_others == 77
