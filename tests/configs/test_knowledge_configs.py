"""The COCO configs with features and boxes: the plain student, a teacher, and published weights."""

from __future__ import annotations

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

register_all_modules()

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
FILES = sorted(path for path in CONFIGS.glob('*/calkd-*.py') if path.parent.name != 'mini')
# The class loss and what the name of the file adds to it. Weights are those of the papers.
ADDED = {
    'faster_rcnn/calkd-pkd': dict(feat=dict(type='PKDLoss', loss_weight=6.0)),
    'retinanet/calkd-pkd': dict(feat=dict(type='PKDLoss', loss_weight=10.0)),
    'fcos/calkd-pkd': dict(feat=dict(type='PKDLoss', loss_weight=10.0)),
    'atss/calkd-pkd': dict(feat=dict(type='PKDLoss', loss_weight=6.0, num_levels=5)),
    'gfl/calkd-ld-pkd': dict(
        bbox=dict(type='LDLoss', tau=10.0, loss_weight=0.25),
        feat=dict(type='PKDLoss', loss_weight=6.0, num_levels=5),
    ),
    'rtmdet/calkd-cwd': dict(feat=dict(type='CWDLoss', tau=1.0, loss_weight=1.0)),
    'deformable_detr/calkd-box-pkd': dict(
        bbox=dict(type='BoxKDLoss', loss_weight=1.0), feat=dict(type='PKDLoss', loss_weight=6.0)
    ),
    'dino/calkd-box-dn-pkd': dict(
        bbox=dict(type='BoxKDLoss', loss_weight=1.0), feat=dict(type='PKDLoss', loss_weight=6.0)
    ),
    'dino/calkd-box-dn': dict(bbox=dict(type='BoxKDLoss', loss_weight=1.0)),
}

every_config = pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)


def plain(cfg: Config) -> Config:
    """The config without distillation."""
    cfg = cfg.copy()
    cfg.model = ConfigDict({k: v for k, v in cfg.model.items() if k != 'distillation'})
    return cfg


def test_all_are_named_here() -> None:
    assert {f'{path.parent.name}/{path.stem.split("_")[0]}' for path in FILES} == ADDED.keys()
    assert len(FILES) == 15


@every_config
def test_adds_the_knowledge_of_its_name(path: Path) -> None:
    cfg = Config.fromfile(path)
    method = path.stem.split('_')[0]
    losses = cfg.model.distillation.to_dict()
    kind = 'KDLoss' if path.parent.name == 'faster_rcnn' else 'BinaryKDLoss'
    assert losses.pop('cls') == dict(type=kind, tau=1.0, loss_weight=1.0)
    expected = ADDED[f'{path.parent.name}/{method}']
    for name, loss in expected.items():
        assert loss.items() <= losses.pop(name).items()
    assert not losses
    base = path.with_name(path.name.replace(method, 'calkd'))
    if base.is_file():
        assert plain(cfg).to_dict() == plain(Config.fromfile(base)).to_dict()


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('rtmdet/calkd-*.py')), ids=lambda p: p.stem)
def test_the_convolutions_fit_the_necks(path: Path) -> None:
    cfg = Config.fromfile(path)
    loss, teacher = cfg.model.distillation.feat, get_config(cfg.model.teacher.config)
    assert loss.student_channels == cfg.model.neck.out_channels
    assert loss.teacher_channels == teacher.model.neck.out_channels
    assert loss.num_levels == len(cfg.model.neck.in_channels)


@pytest.mark.parametrize('name', ['gfl/calkd-ld-pkd', 'rtmdet/calkd-cwd_rtmdet_s-tiny'])
def test_trains_a_step_of_every_loss(name: str, tmp_path: Path) -> None:
    (path,) = CONFIGS.glob(f'{name}*.py')
    cfg = Config.fromfile(path)
    teacher = get_config(cfg.model.teacher.config).model
    for model in (teacher, cfg.model):
        model.backbone.init_cfg = None
        model.data_preprocessor.pop('batch_augments', None)
    cfg.model.teacher.config = dict(model=teacher.to_dict())
    cfg.model.teacher.checkpoint = str(tmp_path / 'teacher.pth')
    meta = dict(dataset_meta=dict(classes=CocoDataset.METAINFO['classes']))
    weights = MODELS.build(teacher).state_dict()
    torch.save(dict(meta=meta, state_dict=weights), cfg.model.teacher.checkpoint)
    student = MODELS.build(cfg.model)
    student.init_weights()
    optim_wrapper = build_optim_wrapper(student, cfg.optim_wrapper)
    batch = helpers.batch(((64, 64),) * 2, num_classes=80)
    logs = student.train().train_step(batch, optim_wrapper)
    for loss in cfg.model.distillation:
        assert logs[f'loss_kd_{loss}'] > 0
    assert all(torch.as_tensor(value).isfinite().all() for value in logs.values())
