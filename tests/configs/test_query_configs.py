"""The COCO configs of detection transformers: mmdet's own, a teacher, and what their names add."""

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

from calkd_det.errors import ConfigError

register_all_modules()

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
FILES = sorted(
    path for name in ('deformable_detr', 'dino') for path in CONFIGS.glob(f'{name}/*.py')
)
CALKD_FILES = [path for path in FILES if path.name.startswith('calkd-')]
PLAIN_FILES = [path for path in FILES if path not in CALKD_FILES]
WIDTHS = {18: [128, 256, 512], 50: [512, 1024, 2048], 101: [512, 1024, 2048]}
ADDED = {'teacher', 'distillation'}

every_config = pytest.mark.parametrize('path', CALKD_FILES, ids=lambda path: path.stem)
every_plain_config = pytest.mark.parametrize('path', PLAIN_FILES, ids=lambda path: path.stem)


def base_config(path: Path) -> Config:
    """What a config inherits from."""
    (name,) = re.findall(r"^_base_ = '(.+)'$", path.read_text('utf-8'), re.MULTILINE)
    if '::' not in name:
        return Config.fromfile(path.parent / name)
    return Config.fromstring(f"_base_ = '{name}'", '.py')


def read_teacher(cfg: Config) -> Config:
    name = cfg.model.teacher.config
    return get_config(name) if '::' in name else Config.fromfile(name)


def backbone_name(model: ConfigDict) -> str:
    backbone = model.backbone
    return 'swin-l' if backbone.type == 'SwinTransformer' else f'r{backbone.depth}'


def shapes(model: ConfigDict) -> dict[str, torch.Size]:
    model = copy.deepcopy(model)
    model.backbone.init_cfg = None
    with torch.device('meta'):
        return {key: value.shape for key, value in MODELS.build(model).state_dict().items()}


def test_every_file_is_of_a_kind() -> None:
    assert len(CALKD_FILES) == 4
    assert len(PLAIN_FILES) == 3


@every_config
def test_adds_a_teacher_and_losses_and_nothing_else(path: Path) -> None:
    cfg, base = Config.fromfile(path), base_config(path)
    assert cfg.custom_imports.imports == ['calkd_det']
    assert cfg.model.type == f'CalKD{base.model.type}'
    plain = cfg.to_dict()
    plain['model'] = {key: value for key, value in plain['model'].items() if key not in ADDED}
    plain['model']['type'] = base.model.type
    del plain['custom_imports']
    assert plain == base.to_dict()
    assert shapes(cfg.model) == shapes(base.model)


@every_config
def test_name_tells_teacher_student_and_denoising(path: Path) -> None:
    cfg = Config.fromfile(path)
    teacher = read_teacher(cfg)
    assert f'_{backbone_name(teacher.model)}-{backbone_name(cfg.model)}_' in path.name
    assert cfg.model.teacher.get('denoising', False) == ('-dn' in path.name)
    assert cfg.model.teacher.calibrator == dict(type='TemperatureScaling', temperature=1.0)
    assert f'-{cfg.max_epochs}e_' in path.name


@every_config
def test_the_teachers_checkpoint_is_there_or_is_what_mmdet_writes(path: Path) -> None:
    teacher = Config.fromfile(path).model.teacher
    if teacher.checkpoint is None:
        assert get_config(teacher.config, pretrained=True).model_path.endswith('.pth')
        return
    own = Path(teacher.config).resolve()
    epochs = Config.fromfile(own).train_cfg.max_epochs
    assert own in PLAIN_FILES
    assert teacher.checkpoint == f'work_dirs/{own.stem}/epoch_{epochs}.pth'


@every_plain_config
def test_a_plain_config_is_mmdets_with_another_resnet(path: Path) -> None:
    cfg, base = Config.fromfile(path), base_config(path)
    (depth,) = (int(number) for number in re.findall(r'_r(\d+)_', path.name))
    assert cfg.model.backbone.depth == depth
    assert cfg.model.backbone.init_cfg.checkpoint == f'torchvision://resnet{depth}'
    assert cfg.model.neck.in_channels == WIDTHS[depth]
    cfg.model.backbone.update(depth=50, init_cfg=base.model.backbone.init_cfg)
    cfg.model.neck.in_channels = base.model.neck.in_channels
    assert cfg.to_dict() == base.to_dict()


def shrink(model: ConfigDict) -> None:
    """A narrow backbone, one layer of encoder and decoder, and few queries."""
    backbone, neck = model.backbone, model.neck
    backbone.init_cfg = None
    if backbone.type == 'SwinTransformer':
        backbone.update(embed_dims=8, depths=[1] * 4, num_heads=[1, 2, 4, 8], window_size=4)
        neck.in_channels = [8, 16, 32, 64]
    else:
        backbone.base_channels = 4
        neck.in_channels = [width // 16 for width in WIDTHS[backbone.depth]]
    model.num_queries = model.test_cfg.max_per_img = 20
    for part in (model.encoder, model.decoder):
        part.num_layers = 1
        part.layer_cfg.ffn_cfg.feedforward_channels = 16


def distilled(path: Path, checkpoint: Path) -> tuple[nn.Module, Config]:
    """A shrunk student of a config and of its shrunk teacher, and the config."""
    cfg = Config.fromfile(path)
    teacher = read_teacher(cfg).model
    for model in (cfg.model, teacher):
        shrink(model)
    meta = dict(dataset_meta=dict(classes=CocoDataset.METAINFO['classes']))
    torch.save(dict(meta=meta, state_dict=helpers.build(teacher, 1).state_dict()), checkpoint)
    cfg.model.teacher.update(config=dict(model=teacher.to_dict()), checkpoint=str(checkpoint))
    return helpers.build(cfg.model), cfg


@every_config
def test_trains_a_step_of_every_loss(path: Path, tmp_path: Path) -> None:
    student, cfg = distilled(path, tmp_path / 'teacher.pth')
    student.init_weights()
    optim_wrapper = build_optim_wrapper(student, cfg.optim_wrapper)
    before = {name: value.clone() for name, value in student.named_parameters()}
    logs = student.train().train_step(helpers.batch(num_classes=80), optim_wrapper)
    names = {f'loss_kd_{name}' for name in cfg.model.distillation}
    if '-dn' in path.name:
        names |= {'dn.loss_kd_cls', 'dn.loss_kd_bbox'}
    assert {name for name in logs if 'loss_kd' in name} == names
    assert all(logs[name] > 0 for name in names)
    assert all(torch.as_tensor(value).isfinite().all() for value in logs.values())
    changed = {n for n, value in student.named_parameters() if not value.equal(before[n])}
    for part in ('backbone', 'neck', 'encoder', 'decoder', 'bbox_head'):
        assert any(name.startswith(part) for name in changed), part


def test_features_of_a_teacher_with_other_levels_are_refused(tmp_path: Path) -> None:
    (path,) = (path for path in CALKD_FILES if 'swin' in path.name)
    _, cfg = distilled(path, tmp_path / 'teacher.pth')
    cfg.model.distillation.feat = dict(type='PKDLoss')
    student = MODELS.build(cfg.model)
    with pytest.raises(ConfigError, match=r'model\.teacher\.config: .* 8, 16, 32, 64, .* 4, 8'):
        student.init_weights()
