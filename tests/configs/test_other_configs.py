"""The configs of the mini data set and the examples say what they are, and build."""

from __future__ import annotations

import copy
from pathlib import Path

import helpers
import pytest
from mmdet.datasets import CocoDataset
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hub import get_config

from calkd_det import config_path

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
FILES = sorted([*CONFIGS.glob('mini/*.py'), *CONFIGS.glob('examples/*.py')])
DISTILLED_FILES = [path for path in FILES if 'kd' in path.stem and path.parent.name == 'mini']
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


@pytest.mark.parametrize('path', DISTILLED_FILES, ids=lambda path: path.stem)
def test_the_teacher_of_a_mini_student_is_what_its_training_writes(path: Path) -> None:
    cfg = Config.fromfile(path)
    teacher = cfg.model.teacher
    own = Path(teacher.config).resolve()
    epochs = Config.fromfile(own).train_cfg.max_epochs
    assert teacher.checkpoint == f'work_dirs/{own.stem}/epoch_{epochs}.pth'
    for name, each in ((own.stem, epochs), (path.stem, cfg.train_cfg.max_epochs)):
        assert name.endswith(f'_{each}e_mini')


def test_the_distilled_dino_is_the_plain_one_with_a_teacher() -> None:
    plain = read('mini/dino_r18-student_12e_mini.py')
    cfg = read('mini/calkd_dino_r18-teacher-student_12e_mini.py')
    teacher, distillation = cfg.model.pop('teacher'), cfg.model.pop('distillation')
    assert teacher.denoising
    assert teacher.calibrator == dict(type='TemperatureScaling', temperature=1.0)
    assert {name: loss.type for name, loss in distillation.items()} == {
        'cls': 'BinaryKDLoss', 'bbox': 'BoxKDLoss'
    }  # fmt: skip
    assert (plain.model.pop('type'), cfg.model.pop('type')) == ('DINO', 'CalKDDINO')
    assert cfg.to_dict() == plain.to_dict()


def test_the_small_dino_has_the_parts_of_mmdets() -> None:
    small = read('mini/dino_r18-teacher_12e_mini.py').model
    zoo = get_config('mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py').model
    del zoo.backbone['init_cfg'], zoo.backbone['num_stages'], zoo.backbone['frozen_stages']
    added = {'.backbone.base_channels', '.num_feature_levels'}
    for part in ('encoder', 'decoder'):
        for attention in ('self_attn_cfg', 'cross_attn_cfg'):
            added |= {f'.{part}.layer_cfg.{attention}.{key}' for key in ('num_heads', 'num_points')}
    assert parts(small.to_dict()) ^ parts(zoo.to_dict()) <= added


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
