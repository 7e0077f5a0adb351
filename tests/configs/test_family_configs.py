"""The COCO configs of the other families: mmdet's own configs with a teacher, and nothing else."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import helpers
import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config
from mmengine.optim import build_optim_wrapper
from torch import nn

register_all_modules()

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
# Faster R-CNN and detection transformers have tests of their own; the rest are no experiments on
# COCO.
TRANSFORMERS = {'deformable_detr', 'dino'}
OTHER_FOLDERS = {'_base_', 'examples', 'faster_rcnn', 'mini', 'studies', *TRANSFORMERS}
FILES = sorted(path for path in CONFIGS.glob('*/*.py') if path.parent.name not in OTHER_FOLDERS)
CALKD_FILES = [path for path in FILES if path.name.startswith('calkd_')]
ADDED = {'teacher', 'distillation'}

every_config = pytest.mark.parametrize('path', CALKD_FILES, ids=lambda path: path.stem)


def base_config(path: Path) -> Config:
    """What a config inherits from."""
    (name,) = re.findall(r"^_base_ = '(.+)'$", path.read_text('utf-8'), re.MULTILINE)
    if '::' not in name:
        return Config.fromfile(path.parent / name)
    return Config.fromstring(f"_base_ = '{name}'", '.py')


def build(model: ConfigDict) -> nn.Module:
    """Builds a model without downloads."""
    model = copy.deepcopy(model)
    model.backbone.init_cfg = None
    return MODELS.build(model)


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in model.state_dict().items()}


def test_every_family_has_a_config() -> None:
    assert {path.parent for path in CALKD_FILES} == {path.parent for path in FILES}
    assert len(CALKD_FILES) >= 6


@every_config
def test_adds_a_calibrated_teacher_and_nothing_else(path: Path) -> None:
    cfg, base = Config.fromfile(path), base_config(path)
    assert cfg.custom_imports.imports == ['calkd_det']
    assert cfg.model.type == f'CalKD{base.model.type}'
    teacher, loss = cfg.model.teacher, cfg.model.distillation
    assert teacher.keys() == {'config', 'checkpoint', 'calibrator'}
    assert teacher.checkpoint is None
    # The published T is for a softmax; a sigmoid teacher is left as it is until T is fitted.
    temperature = 1.0 if loss.type == 'BinaryKDLoss' else 1.5
    assert teacher.calibrator == dict(type='TemperatureScaling', temperature=temperature)
    assert (loss.tau, loss.loss_weight) == (1.0, 1.0)

    plain = cfg.to_dict()
    plain['model']['type'] = base.model.type
    plain['model'] = {key: value for key, value in plain['model'].items() if key not in ADDED}
    del plain['custom_imports']
    assert plain == base.to_dict()


@every_config
def test_name_tells_teacher_and_student(path: Path) -> None:
    cfg = Config.fromfile(path)
    teacher = get_config(cfg.model.teacher.config)
    for backbone in (teacher.model.backbone, cfg.model.backbone):
        if 'depth' in backbone:
            assert re.search(rf'[_-]r{backbone.depth}[_-]', path.stem)
    assert get_config(cfg.model.teacher.config, pretrained=True).model_path.endswith('.pth')


@every_config
def test_has_the_plain_students_weights(path: Path) -> None:
    with torch.device('meta'):
        assert shapes(build(Config.fromfile(path).model)) == shapes(build(base_config(path).model))


@every_config
def test_trains_a_step(path: Path, tmp_path: Path) -> None:
    cfg = Config.fromfile(path)
    teacher = get_config(cfg.model.teacher.config).model
    teacher.backbone.init_cfg = None
    for model in (teacher, cfg.model):
        shrink(model)
    checkpoint = tmp_path / 'teacher.pth'
    meta = dict(dataset_meta=dict(classes=CocoDataset.METAINFO['classes']))
    torch.save(dict(meta=meta, state_dict=build(teacher).state_dict()), checkpoint)
    cfg.model.teacher.update(config=dict(model=teacher.to_dict()), checkpoint=str(checkpoint))
    torch.manual_seed(1)
    model = build(cfg.model)
    model.init_weights()

    roi_head = cfg.model.get('roi_head', {})
    batch = helpers.batch(
        ((64, 64),) * 2,
        num_classes=80,
        masks='mask_head' in roi_head,
        segmentation=roi_head.get('semantic_head', {}).get('num_classes', 0),
    )
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    logs = model.train().train_step(batch, optim_wrapper)

    assert all(torch.as_tensor(value).isfinite().all() for value in logs.values()), logs
    distilled = [value for name, value in logs.items() if 'loss_kd' in name]
    assert len(distilled) == roi_head.get('num_stages', 1)
    assert all(value > 0 for value in distilled)
    changed = {n for n, parameter in model.named_parameters() if not parameter.equal(before[n])}
    assert any('_cls' in name for name in changed)
    assert any(name.startswith('neck') for name in changed)


def shrink(model: ConfigDict) -> None:
    """Keep a step short: narrow layers, 16 RoIs an image, and no images of other sizes."""
    if model.backbone.type == 'ResNet':
        model.backbone.base_channels = 8
        for neck in model.neck if isinstance(model.neck, list) else [model.neck]:
            if isinstance(neck.in_channels, list):
                neck.in_channels = [width // 8 for width in neck.in_channels]
    heads = model.get('roi_head', {}).get('bbox_head', [])
    for head in heads if isinstance(heads, list) else [heads]:
        head.fc_out_channels = 64
    stages = (model.get('train_cfg') or {}).get('rcnn', [])
    for stage in stages if isinstance(stages, list) else [stages]:
        stage.sampler.num = 16
    model.data_preprocessor.pop('batch_augments', None)
