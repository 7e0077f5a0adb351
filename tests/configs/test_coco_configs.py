"""The COCO configs say what their names say, follow one protocol, build, and train."""

from __future__ import annotations

import copy
import re
from functools import cache
from pathlib import Path

import helpers
import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from mmengine.fileio import load
from mmengine.hub import get_config
from mmengine.optim import build_optim_wrapper
from torch import Tensor, nn

from calkd_det import config_path

register_all_modules()

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs'
# Not experiments on COCO: shared parts, templates for users, the embedded data set, studies.
OTHER_FOLDERS = {'_base_', 'examples', 'mini', 'studies'}
ALL_FILES = sorted(
    path
    for path in CONFIGS.rglob('*.py')
    if path.relative_to(CONFIGS).parts[0] not in OTHER_FOLDERS
)
# Those with further kinds of knowledge have tests of their own.
FILES = [
    path
    for path in ALL_FILES
    if path.parent.name == 'faster_rcnn' and not path.name.startswith('calkd-')
]
PLAIN_FILES = [path for path in FILES if path.name.startswith('faster-rcnn_')]
CALKD_FILES = [path for path in FILES if path.name.startswith('calkd_')]
NAME = re.compile(
    r'(?:(?P<method>kd|calkd)_)?faster-rcnn_(?:(?P<teacher>r\d+)-)?(?P<student>r\d+|mobilenetv2)'
    r'_fpn_8xb1-ms-180k_coco'
)
BACKBONES = {
    'r18': dict(type='ResNet', depth=18, checkpoint='torchvision://resnet18'),
    'r50': dict(type='ResNet', depth=50, checkpoint='torchvision://resnet50'),
    'mobilenetv2': dict(type='MobileNetV2', checkpoint='open-mmlab://mmdet/mobilenet_v2'),
}
TEACHERS = {
    'r101': 'mmdet::faster_rcnn/faster-rcnn_r101_fpn_ms-3x_coco.py',
    'r50': 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_ms-3x_coco.py',
}

every_config = pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)


def parse(path: Path) -> dict[str, str | None]:
    match = NAME.fullmatch(path.stem)
    assert match, f'{path.name} does not follow the naming scheme'
    return match.groupdict()


def plain_file(path: Path) -> Path:
    return path.with_name(f'faster-rcnn_{parse(path)["student"]}_fpn_8xb1-ms-180k_coco.py')


def without_downloads(model: ConfigDict) -> ConfigDict:
    model = copy.deepcopy(model)
    model.backbone.init_cfg = None
    return model


@cache
def plain_model(path: Path) -> nn.Module:
    return MODELS.build(without_downloads(Config.fromfile(path).model))


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in model.state_dict().items()}


def test_every_pair_has_its_three_configs() -> None:
    found = {tuple(parse(path).values()) for path in FILES}
    pairs = [('r101', 'r50'), ('r101', 'r18'), ('r50', 'mobilenetv2')]
    distilled = {(method, *pair) for method in ('kd', 'calkd') for pair in pairs}
    assert found == distilled | {(None, None, student) for _, student in pairs}


@every_config
def test_method_and_teacher_are_the_names(path: Path) -> None:
    name, model = parse(path), Config.fromfile(path).model
    if name['method'] is None:
        assert model.type == 'FasterRCNN'
        assert 'teacher' not in model
        assert 'distillation' not in model
        return
    temperature = {'kd': 1.0, 'calkd': 1.5}[name['method']]
    assert model.type == 'CalKDFasterRCNN'
    assert model.teacher == dict(
        config=TEACHERS[name['teacher']],
        checkpoint=None,
        calibrator=dict(type='TemperatureScaling', temperature=temperature),
    )
    assert model.distillation == dict(type='KDLoss', tau=1.0, loss_weight=1.0)


@every_config
def test_distilled_differs_from_plain_in_the_distillation_only(path: Path) -> None:
    cfg, plain = Config.fromfile(path), Config.fromfile(plain_file(path))
    if parse(path)['method'] is not None:
        cfg.model.type = plain.model.type
        del cfg.model.teacher, cfg.model.distillation
    assert cfg.to_dict() == plain.to_dict()


@every_config
def test_backbone_is_the_names(path: Path) -> None:
    student, backbone = parse(path)['student'], Config.fromfile(path).model.backbone
    expected = dict(BACKBONES[student])
    assert backbone.init_cfg == dict(type='Pretrained', checkpoint=expected.pop('checkpoint'))
    assert {key: backbone.get(key) for key in expected} == expected
    assert backbone.norm_eval is True
    resnet_only = {'depth', 'num_stages', 'style'}
    assert resnet_only.isdisjoint(backbone) == (student == 'mobilenetv2')


@pytest.mark.parametrize('path', PLAIN_FILES, ids=lambda path: path.stem)
def test_pyramid_fits_the_backbone(path: Path) -> None:
    model, image = plain_model(path), torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        stages, levels = model.backbone(image), model.extract_feat(image)
    assert [stage.shape[1] for stage in stages] == model.neck.in_channels
    assert [64 // level.shape[-1] for level in levels] == [4, 8, 16, 32, 64]


@every_config
def test_schedule_is_the_protocols(path: Path) -> None:
    cfg = Config.fromfile(path)
    assert cfg.custom_imports.imports == ['calkd_det']
    assert (cfg.train_cfg.type, cfg.train_cfg.max_iters) == ('IterBasedTrainLoop', 180000)
    assert cfg.optim_wrapper.optimizer == dict(
        type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0001
    )
    warmup, steps = cfg.param_scheduler
    assert warmup == dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000)
    assert (steps.type, steps.by_epoch, steps.gamma) == ('MultiStepLR', False, 0.1)
    assert (steps.milestones, steps.end) == ([120000, 160000], 180000)

    assert cfg.train_dataloader.batch_size == 1
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=8)
    assert cfg.train_dataloader.sampler.type == 'InfiniteSampler'
    resize = cfg.train_dataloader.dataset.pipeline[2]
    assert (resize.type, resize.keep_ratio) == ('RandomChoiceResize', True)
    assert resize.scales == [(1333, side) for side in (640, 672, 704, 736, 768, 800)]

    assert cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval == 15000
    assert cfg.default_hooks.checkpoint.save_best == 'coco/bbox_mAP'
    assert cfg.default_hooks.checkpoint.by_epoch is False
    assert cfg.log_processor.by_epoch is False


@every_config
def test_builds_with_the_plain_students_weights(path: Path) -> None:
    model = MODELS.build(without_downloads(Config.fromfile(path).model))
    assert shapes(model) == shapes(plain_model(plain_file(path)))


@pytest.mark.parametrize('config', TEACHERS.values(), ids=TEACHERS)
def test_the_zoo_lists_a_checkpoint_for_the_teacher(config: str) -> None:
    assert get_config(config, pretrained=True).model_path.endswith('.pth')


def test_metafile_lists_every_config() -> None:
    listed = []
    for metafile in load(ROOT / 'model-index.yml')['Import']:
        meta = load(ROOT / metafile)
        collections = {collection['Name'] for collection in meta['Collections']}
        assert all((ROOT / collection['README']).is_file() for collection in meta['Collections'])
        for model in meta['Models']:
            assert Path(model['Config']).stem == model['Name']
            assert model['In Collection'] in collections
            listed.append(ROOT / model['Config'])
    assert sorted(listed) == ALL_FILES


def test_readme_links_every_config() -> None:
    for folder in {path.parent for path in ALL_FILES}:
        links = re.findall(r'\]\(([^):]+\.py)\)', (folder / 'README.md').read_text('utf-8'))
        assert all((folder / link).is_file() for link in links)
        assert {path.name for path in ALL_FILES if path.parent == folder} <= set(links)


def test_example_for_own_data_sets_the_classes_everywhere() -> None:
    cfg = Config.fromfile(config_path('examples/own_data_and_teacher.py'))
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert len(loader.dataset.metainfo.classes) == cfg.model.roi_head.bbox_head.num_classes
        assert loader.dataset.data_root == cfg.data_root
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        assert evaluator.ann_file == cfg.data_root + cfg.val_dataloader.dataset.ann_file
    model = MODELS.build(without_downloads(cfg.model))
    assert model.roi_head.bbox_head.fc_cls.out_features == 4


def test_example_inherits_the_installed_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = tmp_path / 'mine.py'
    copied.write_text(Path(config_path('examples/inherit_installed.py')).read_text('utf-8'))
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(copied)
    parent = Config.fromfile(
        config_path('faster_rcnn/calkd_faster-rcnn_r101-r50_fpn_8xb1-ms-180k_coco.py')
    )
    assert cfg.model.teacher.calibrator.temperature == 2.0
    cfg.model.teacher.calibrator.temperature = 1.5
    assert cfg.to_dict() == parent.to_dict()


@pytest.fixture(scope='module')
def teacher_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint with random weights for every teacher config, in mmdet's own format."""
    files = {}
    for name, config in TEACHERS.items():
        torch.manual_seed(0)
        model = MODELS.build(without_downloads(get_config(config).model))
        files[config] = tmp_path_factory.mktemp('teachers') / f'{name}.pth'
        meta = dict(dataset_meta=dict(classes=CocoDataset.METAINFO['classes']))
        torch.save(dict(meta=meta, state_dict=model.state_dict()), files[config])
    return files


@pytest.mark.parametrize('path', CALKD_FILES, ids=lambda path: path.stem)
def test_one_training_step(path: Path, teacher_files: dict[str, Path]) -> None:
    cfg = Config.fromfile(path)
    cfg.model.teacher.checkpoint = str(teacher_files[cfg.model.teacher.config])
    cfg.model.train_cfg.rcnn.sampler.num = 16  # keeps the step short
    torch.manual_seed(1)
    model = MODELS.build(without_downloads(cfg.model))
    model.init_weights()
    model.train()
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    before: dict[str, Tensor] = copy.deepcopy(model.state_dict())

    logs = model.train_step(helpers.batch(((64, 64),) * 2, num_classes=80), optim_wrapper)

    assert all(torch.as_tensor(value).isfinite().all() for value in logs.values()), logs
    assert logs['loss_kd'] > 0
    after = model.state_dict()
    for key in ('neck.lateral_convs.0.conv.weight', 'roi_head.bbox_head.fc_cls.weight'):
        assert not torch.equal(after[key], before[key])
