"""The order of names in a config changes nothing: the teacher is matched to the training labels."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import helpers
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.model import BaseModel
from mmengine.runner import FlexibleRunner, Runner
from small_runs import log_of, run
from torch import nn

from calkd_det.detectors.runner_data import training_dataset
from calkd_det.errors import ConfigError

FILE_ORDER = ('cat', 'dog', 'bird')
PERMUTED = ('bird', 'cat', 'dog')
TEACHER = ('bird', 'cow', 'cat', 'dog')
COLUMNS = [2, 3, 0]  # of FILE_ORDER in TEACHER


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of noise with two objects each, and a teacher of four classes."""
    folder = tmp_path_factory.mktemp('order')
    rng = np.random.default_rng(0)
    for number in range(4):
        cv2.imwrite(
            str(folder / f'{number}.png'), rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)
        )
    write_annotations(folder / 'train.json')
    helpers.save_teacher(
        folder / 'teacher.pth', helpers.detector_config(num_classes=4), classes=TEACHER
    )
    return folder


def write_annotations(path: Path, categories: Sequence[str] = FILE_ORDER) -> None:
    annotations = [
        dict(
            id=number,
            image_id=number // 2,
            category_id=number % len(categories),
            bbox=[10 + number, 5, 30, 40],
            area=1200,
            iscrowd=0,
        )
        for number in range(8)
    ]
    content = dict(
        images=[dict(id=i, file_name=f'{i}.png', width=96, height=64) for i in range(4)],
        annotations=annotations,
        categories=[dict(id=i, name=name) for i, name in enumerate(categories)],
    )
    path.write_text(json.dumps(content))


def dataset(root: Path, classes: Any = FILE_ORDER, ann_file: str = 'train.json') -> dict:
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='Resize', scale=(96, 64)),
        dict(type='PackDetInputs', meta_keys=('img_id', 'img_shape', 'ori_shape', 'scale_factor')),
    ]
    return dict(
        type='CocoDataset',
        data_root=str(root),
        ann_file=ann_file,
        data_prefix=dict(img=''),
        metainfo=None if classes is None else dict(classes=classes),
        pipeline=pipeline,
    )


def loader(data: dict) -> dict:
    return dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=True),
        dataset=data,
    )


def student(root: Path, num_classes: int = 3, **teacher: Any) -> ConfigDict:
    cfg = helpers.distilled_config(
        helpers.detector_config(num_classes=4), root / 'teacher.pth', teacher=teacher
    )
    cfg.roi_head.bbox_head.num_classes = num_classes
    return cfg


def train(root: Path, work_dir: Path, data: dict, val: dict | None = None, **keys: Any) -> Runner:
    options = {}
    if val is not None:
        options = dict(
            val_dataloader={**loader(val), 'sampler': dict(type='DefaultSampler', shuffle=False)},
            val_cfg=dict(),
            val_evaluator=dict(type='CocoMetric', ann_file=str(root / 'train.json')),
        )
    return run(student(root, **keys), work_dir, epochs=1, train_dataloader=loader(data), **options)


@pytest.fixture(scope='module')
def in_order(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return train(root, tmp_path_factory.mktemp('in_order'), dataset(root))


@pytest.mark.parametrize(
    ('train_classes', 'val_classes'),
    [
        (PERMUTED, None),
        (FILE_ORDER, PERMUTED),
        (FILE_ORDER, 'forgotten'),
        (PERMUTED, FILE_ORDER),
    ],
    ids=['permuted', 'val permuted', 'val without names', 'train permuted, val in order'],
)
def test_a_student_is_that_of_names_in_order(
    train_classes: Any, val_classes: Any, root: Path, tmp_path: Path, in_order: Runner
) -> None:
    val = None
    if val_classes is not None:
        val = dataset(root, None if val_classes == 'forgotten' else val_classes)
    runner = train(root, tmp_path, dataset(root, train_classes), val)
    assert runner.model.teacher.network.class_map.columns.tolist() == COLUMNS
    assert in_order.model.teacher.network.class_map.columns.tolist() == COLUMNS
    expected = in_order.model.state_dict()
    state = runner.model.state_dict()
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    warned = 'metainfo from 0 on: bird, cat, dog' in log_of(tmp_path)
    assert warned == (train_classes == PERMUTED)


def test_the_teachers_order_is_not_the_students(
    root: Path, tmp_path: Path, in_order: Runner
) -> None:
    """Distillation from the wrong columns would be seen in the weights."""
    names = dict(cat='dog', dog='bird', bird='cat')
    runner = train(root, tmp_path, dataset(root), class_names=names)
    assert runner.model.teacher.network.class_map.columns.tolist() == [3, 0, 2]
    pairs = zip(runner.model.parameters(), in_order.model.parameters())
    assert any(not torch.equal(one, other) for one, other in pairs)


def test_parts_of_a_training_set(root: Path, tmp_path: Path) -> None:
    part = dataset(root)
    other = copy.deepcopy(part)
    other['metainfo']['palette'] = [(0, 0, 0)] * 3
    parts = dict(type='ConcatDataset', datasets=[part, other])
    runner = train(root, tmp_path, dict(type='RepeatDataset', times=1, dataset=parts))
    assert runner.model.teacher.network.class_map.columns.tolist() == COLUMNS


def test_parts_that_number_differently_stop_before_the_first_step(
    root: Path, tmp_path: Path
) -> None:
    write_annotations(root / 'other.json', PERMUTED)
    parts = [dataset(root), dataset(root, ann_file='other.json')]
    with pytest.raises(ConfigError, match=r"train\.json' and CocoDataset '\S*other\.json' number"):
        train(root, tmp_path, dict(type='ConcatDataset', datasets=parts))


def test_a_class_that_the_file_lacks_stops_before_the_first_step(
    root: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r'no category for 1 .* metainfo: cow\.'):
        train(root, tmp_path, dataset(root, ('cat', 'cow', 'dog')))


def test_one_class_as_a_text(root: Path, tmp_path: Path) -> None:
    runner = train(root, tmp_path, dataset(root, 'dog'), num_classes=1)
    assert runner.model.teacher.network.class_map.columns.tolist() == [3]
    (tmp_path / 'names.txt').write_text('dog\ncat\n')
    runner = train(root, tmp_path, dataset(root, str(tmp_path / 'names.txt')), num_classes=2)
    assert runner.model.teacher.network.class_map.columns.tolist() == [2, 3]


def test_names_spelt_otherwise(root: Path, tmp_path: Path) -> None:
    write_annotations(root / 'spelt.json', ('kitten', 'dog', 'bird'))
    data = dataset(root, ('kitten', 'dog', 'bird'), 'spelt.json')
    with pytest.raises(ConfigError, match=r"class_names=\{'kitten': "):
        train(root, tmp_path, data)
    runner = train(root, tmp_path, data, class_names=dict(kitten='cat'))
    assert runner.model.teacher.network.class_map.columns.tolist() == COLUMNS


@MODELS.register_module()
class Holder(BaseModel):
    """Holds a detector, as semi-supervised detectors and trackers do."""

    def __init__(self, detector: dict, data_preprocessor: dict) -> None:
        super().__init__(data_preprocessor=data_preprocessor)
        self.detector = MODELS.build(detector)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.detector(*args, **kwargs)


def test_a_detector_inside_another_model(root: Path, tmp_path: Path) -> None:
    cfg = student(root)
    held = ConfigDict(type='Holder', detector=cfg, data_preprocessor=cfg.data_preprocessor)
    runner = run(held, tmp_path, epochs=1, train_dataloader=loader(dataset(root, PERMUTED)))
    assert runner.model.detector.teacher.network.class_map.columns.tolist() == COLUMNS


def test_a_flexible_runner(root: Path, tmp_path: Path) -> None:
    runner = FlexibleRunner(
        model=student(root),
        work_dir=str(tmp_path),
        train_dataloader=loader(dataset(root, PERMUTED)),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        strategy=dict(type='SingleDeviceStrategy'),
        default_scope='mmdet',
        experiment_name='flexible',
    )
    runner.train()
    assert runner.model.teacher.network.class_map.columns.tolist() == COLUMNS


def test_without_a_runner_names_are_those_of_the_detector(root: Path, in_order: Runner) -> None:
    assert training_dataset() is None
    detector = helpers.build(student(root))
    detector.dataset_meta = dict(classes=PERMUTED)
    detector.init_weights()
    assert detector.teacher.network.class_map.columns.tolist() == [0, 2, 3]
    # Not those of a Runner that happens to exist, in_order.
    unnamed: nn.Module = helpers.build(student(root))
    with pytest.raises(ConfigError, match='the names of the student are unknown'):
        unnamed.init_weights()
