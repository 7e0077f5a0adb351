"""The doctor on class names, and on what it cannot tell."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from healthy import DIGITS
from mmdet.models.detectors import FasterRCNN
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModel

from calkd_det import config_path
from calkd_det.commands.doctor.examine import examine
from calkd_det.commands.doctor.finding import Finding, attempt

CALKD = 'mini/calkd_faster-rcnn_r18-teacher-student_fpn_12e_mini.py'


def calkd_config(change: Callable[[Config], None]) -> Config:
    cfg = Config.fromfile(config_path(CALKD))
    cfg.model.teacher.checkpoint = 'teacher.pth'
    cfg.train_dataloader.batch_size = 2
    change(cfg)
    return cfg


def findings(change: Callable[[Config], None]) -> list[Finding]:
    return list(examine(calkd_config(change), device=torch.device('cpu'), num_images=2))


def errors(found: list[Finding]) -> list[Finding]:
    """All but what is said of a teacher with random weights: that it is blind."""
    quality = ('evidence', 'teacher mAP')
    return [each for each in found if each.mark == 'error' and each.title not in quality]


def marked(found: Sequence[Finding], title: str) -> list[tuple[str, str]]:
    return [(finding.mark, finding.text) for finding in found if finding.title == title]


def write_voc(root: Path) -> None:
    """Two images of the training data in the layout of VOC."""
    content = json.loads((root / 'data/mini/annotations/train.json').read_text())
    names = {category['id']: category['name'] for category in content['categories']}
    for folder in ('voc/Annotations', 'voc/JPEGImages'):
        (root / folder).mkdir(parents=True)
    images = content['images'][:2]
    for image in images:
        stem = Path(image['file_name']).stem
        shutil.copy(
            root / 'data/mini/train' / image['file_name'], root / f'voc/JPEGImages/{stem}.jpg'
        )
        objects = []
        for annotation in content['annotations']:
            if annotation['image_id'] == image['id']:
                x, y, width, height = annotation['bbox']
                corners = dict(xmin=x + 1, ymin=y + 1, xmax=x + width + 1, ymax=y + height + 1)
                box = ''.join(f'<{key}>{value}</{key}>' for key, value in corners.items())
                name = names[annotation['category_id']]
                objects.append(f'<object><name>{name}</name><bndbox>{box}</bndbox></object>')
        size = f'<size><width>{image["width"]}</width><height>{image["height"]}</height></size>'
        (root / f'voc/Annotations/{stem}.xml').write_text(
            f'<annotation>{size}{"".join(objects)}</annotation>'
        )
    stems = [Path(image['file_name']).stem for image in images]
    (root / 'voc/list.txt').write_text('\n'.join(stems))


def to_voc(cfg: Config) -> None:
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        old = cfg[name].dataset
        cfg[name].dataset = ConfigDict(
            type='XMLDataset',
            data_root='voc',
            ann_file='list.txt',
            data_prefix=dict(sub_data_root=''),
            metainfo=dict(classes=DIGITS[::-1]),
            pipeline=old.pipeline,
        )


def test_data_that_are_not_in_coco_format(work: Path) -> None:
    write_voc(work)
    found = findings(to_voc)
    assert errors(found) == []
    ((mark, text),) = marked(found, 'validation data')
    assert mark == 'warning'
    assert "cannot tell: 'voc/list.txt' of val_dataloader, a XMLDataset, is not in COCO" in text
    # VOC numbers labels in the order of metainfo.
    assert marked(found, 'classes') == [('ok', 'the same 10 in another order, matched by name')]
    assert marked(found, 'training step')[0][0] == 'ok'


@pytest.mark.parametrize(
    ('change', 'why'),
    [
        (lambda cfg: cfg.update(val_dataloader=None), 'the config has no val_dataloader'),
        (lambda cfg: cfg.val_dataloader.dataset.pop('ann_file'), 'names no annotation file'),
        (
            lambda cfg: cfg.val_dataloader.dataset.update(data_root='s3://bucket/'),
            'is not a file on this machine',
        ),
    ],
)
def test_what_cannot_be_told_is_a_warning(work: Path, change: Callable, why: str) -> None:
    found = findings(change)
    assert errors(found) == []
    ((mark, text),) = marked(found, 'validation data')
    assert mark == 'warning'
    assert text.startswith('cannot tell: ')
    assert why in text


def test_validation_data_that_mmdet_would_mix_up_are_an_error(work: Path) -> None:
    path = Path('data/mini/annotations/val.json')
    content = json.loads(path.read_text())
    content['categories'].reverse()
    path.write_text(json.dumps(content))
    ((mark, text),) = marked(findings(lambda cfg: None), 'validation data')
    assert mark == 'error'
    assert 'lists its categories in another order' in text


def test_labels_and_metainfo_in_different_orders(work: Path) -> None:
    """Only the order of metainfo differs, which mmdet ignores."""
    expected = findings(lambda cfg: None)

    def permute(cfg: Config) -> None:
        for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            cfg[name].dataset.metainfo = dict(classes=DIGITS[::-1])

    found = findings(permute)
    told, ok = marked(found, 'classes')
    assert told[0] == 'warning'
    assert 'Labels from 0 on: zero, one, ' in told[1]
    assert 'metainfo from 0 on: nine, eight, ' in told[1]
    assert ok == ('ok', 'the same 10, in the same order')
    for title in ('teacher mAP', 'calibration', 'distillation'):
        assert marked(found, title) == marked(expected, title)


def test_a_class_of_metainfo_that_the_data_lack(work: Path) -> None:
    def rename(cfg: Config) -> None:
        cfg.train_dataloader.dataset.metainfo = dict(classes=('null', *DIGITS[1:]))

    (mark, text), *_ = marked(findings(rename), 'classes')
    assert mark == 'error'
    assert 'no category for 1 of the classes of its metainfo: null' in text


def test_names_spelt_otherwise_by_the_teacher(work: Path) -> None:
    content = torch.load('teacher.pth')
    content['meta']['dataset_meta']['classes'] = ('null', *DIGITS[1:])
    torch.save(content, 'teacher.pth')
    assert marked(findings(lambda cfg: None), 'teacher')[0][0] == 'error'
    found = findings(lambda cfg: cfg.model.teacher.update(class_names=dict(zero='null')))
    assert errors(found) == []
    assert marked(found, 'classes') == [('ok', 'the same 10, in the same order')]
    assert marked(found, 'teacher mAP')


@MODELS.register_module()
class Tracker(BaseModel):
    """Holds a detector, as semi-supervised detectors and trackers do."""

    def __init__(self, detector: dict, data_preprocessor: dict | None = None) -> None:
        super().__init__(data_preprocessor=data_preprocessor)
        self.detector = MODELS.build(detector)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.detector(*args, **kwargs)


def test_a_detector_inside_another_model(work: Path) -> None:
    def hold(cfg: Config) -> None:
        cfg.model = ConfigDict(type='Tracker', detector=cfg.model)

    found = findings(hold)
    assert errors(found) == []
    warning, ok = marked(found, 'distillation')
    assert warning[0] == 'warning'
    assert 'model is a Tracker that holds a CalKDFasterRCNN' in warning[1]
    assert ok[1].startswith('CalKDFasterRCNN with loss_kd')
    assert marked(found, 'teacher file')[0][0] == 'ok'
    assert marked(found, 'training step') == [
        ('warning', 'cannot tell: a step of a Tracker is not tried')
    ]


@MODELS.register_module()
class DetectorWithOwnTeacher(FasterRCNN):
    def __init__(self, teacher: dict | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)


def test_a_plain_type_with_a_teacher(work: Path) -> None:
    def plain(cfg: Config) -> None:
        cfg.model.type = 'FasterRCNN'

    ((mark, text),) = marked(findings(plain), 'model')
    assert mark == 'error'  # as mmdet stops there
    assert "FasterRCNN, a plain detector, which has no key 'teacher'" in text
    assert "write type='CalKDFasterRCNN'" in text

    def own(cfg: Config) -> None:
        cfg.model.type = 'DetectorWithOwnTeacher'
        del cfg.model['distillation']

    found = findings(own)
    ((mark, text),) = marked(found, 'distillation')
    assert (mark, text[:12]) == ('warning', 'cannot tell:')
    assert errors(found) == []


@pytest.mark.parametrize('kind', ['CalKDFasterRCNN', 'FasterRCNN'])
def test_keys_beside_the_model(kind: str, work: Path) -> None:
    def move(cfg: Config) -> None:
        cfg.model.type = kind
        for key in ('teacher', 'distillation'):
            cfg[key] = cfg.model.pop(key)

    found = marked(findings(move), 'distillation')
    assert found[0][0] == 'warning'
    assert 'teacher and distillation stand beside model, where nothing reads them' in found[0][1]
    mark, text = found[1]
    expected = ('warning', 'off: model.dist') if kind.startswith('CalKD') else ('error', 'this is')
    assert (mark, text[: len(expected[1])]) == expected


def test_keys_beside_the_model_that_are_in_it_too_are_no_matter(work: Path) -> None:
    found = findings(lambda cfg: cfg.update(teacher=cfg.model.teacher))
    assert [mark for mark, _ in marked(found, 'distillation')] == ['ok', 'ok']


def test_a_missing_package_is_named() -> None:
    def weights() -> None:
        raise ModuleNotFoundError("No module named 'torchvision'", name='torchvision')

    _, (finding,) = attempt('initial weights', weights)
    assert finding.mark == 'error'
    assert finding.text == (
        'needs the module torchvision, which Python does not find: install the package that has '
        'it, or add the folder that it lies in to PYTHONPATH'
    )
