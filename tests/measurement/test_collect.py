"""Samples of small detectors on the mini data, against hand-written loops."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from mmdet.registry import DATASETS, TASK_UTILS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData
from torch import Tensor, nn

from calkd_det import config_path
from calkd_det.datasets.mini import write_mini_dataset
from calkd_det.errors import ConfigError, TeacherError
from calkd_det.measurement.collect import SampleStore, _image_seed, collect_samples
from calkd_det.measurement.held_out import (
    HeldOutData,
    annotated,
    leaf_datasets,
    overlap_warnings,
    read_held_out,
)
from calkd_det.taps import HeadSamples

TEACHER = 'mini/faster-rcnn_r18-teacher_fpn_12e_mini.py'
DIGITS = 10


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('mini')
    write_mini_dataset(
        folder, num_images=dict(train=8, calibration=8, val=8), image_size=96, seed=1
    )
    return folder


@pytest.fixture
def cfg(root: Path) -> Config:
    """The teacher's config, told where the data are."""
    cfg = Config.fromfile(config_path(TEACHER))
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = f'{root}/'
    cfg.test_dataloader.dataset.pipeline[1].scale = (128, 128)
    return cfg


@pytest.fixture
def held_out(cfg: Config, root: Path) -> HeldOutData:
    return open_split(cfg, root, 'calibration')


@pytest.fixture(scope='module')
def detector() -> nn.Module:
    detector = helpers.build(helpers.detector_config(num_classes=DIGITS), seed=1)
    helpers.randomise_batchnorm(detector)
    helpers.sharpen_classifier(detector)
    return detector


def open_split(cfg: Config, root: Path, split: str, **kwargs: Any) -> HeldOutData:
    return read_held_out(
        cfg, root / f'annotations/{split}.json', root / split, num_classes=DIGITS, **kwargs
    )


def everything(store: SampleStore) -> tuple[Tensor, ...]:
    return tuple(torch.cat(parts) for parts in zip(*store.chunks()))


def sort_within_images(samples: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Sort samples by image, then by the sum of their logits."""
    logits, _, _, groups = samples
    order = logits.sum(dim=1).argsort()
    order = order[groups[order].argsort(stable=True)]
    return tuple(values[order] for values in samples)


def assert_same(
    one: dict[str, SampleStore],
    other: dict[str, SampleStore],
    tolerance: float = 0,
    in_order: bool = True,
) -> None:
    assert list(one) == list(other) == ['distillation', 'proposals', 'detections']
    for name in one:
        samples, others = everything(one[name]), everything(other[name])
        if not in_order:
            samples, others = sort_within_images(samples), sort_within_images(others)
        for a, b in zip(samples, others):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@torch.no_grad()
def by_hand(detector: nn.Module, dataset: Any, seed: int) -> dict[str, Tensor]:
    """Record the inputs of mmdet's classification loss by plain hooks, image by image."""
    seen: dict[str, list[Tensor]] = {'logits': [], 'labels': []}
    roi_head = detector.roi_head

    def record_targets(module: nn.Module, args: tuple) -> None:
        seen['logits'].append(args[0])
        seen['labels'].append(args[1])

    hook = roi_head.bbox_head.loss_cls.register_forward_pre_hook(record_targets)
    sample = roi_head.bbox_sampler.sample
    for index in range(len(dataset)):
        batch = detector.data_preprocessor(pseudo_collate([dataset[index]]), False)
        (data_sample,) = batch['data_samples']

        def seeded(*args: Any, image_id: int = data_sample.img_id, **kwargs: Any) -> Any:
            torch.manual_seed(_image_seed(seed, image_id))
            return sample(*args, **kwargs)

        roi_head.bbox_sampler.sample = seeded
        detector.loss(batch['inputs'], batch['data_samples'])
    del roi_head.bbox_sampler.sample
    hook.remove()
    return {name: torch.cat(values) for name, values in seen.items()}


def test_the_samples_are_those_of_the_plain_loss(
    detector: nn.Module, held_out: HeldOutData
) -> None:
    stores = collect_samples(detector.eval(), held_out.dataset, seed=5)
    expected = by_hand(detector, held_out.dataset, seed=5)
    logits, labels, weights, groups = everything(stores['distillation'])
    torch.testing.assert_close(logits, expected['logits'], rtol=0, atol=0)
    assert torch.equal(labels, expected['labels'])
    assert torch.equal(weights, torch.ones(len(labels)))
    assert torch.equal(groups.unique(), torch.arange(8))
    assert groups.bincount().tolist() == [32] * 8
    assert 0 < int((labels < DIGITS).sum()) < len(labels)


def test_the_ground_truth_fits_the_resized_image(held_out: HeldOutData) -> None:
    raw = held_out.dataset.get_data_info(0)
    sample = held_out.dataset[0]['data_samples']
    assert sample.img_shape == (128, 128)
    assert (raw['height'], raw['width']) == (96, 96)
    expected = torch.tensor([entry['bbox'] for entry in raw['instances']]) * 128 / 96
    torch.testing.assert_close(sample.gt_instances.bboxes.tensor, expected)


@pytest.mark.parametrize('batch_size', [3, 8])
def test_batch_size_changes_nothing(
    detector: nn.Module, held_out: HeldOutData, batch_size: int
) -> None:
    one = collect_samples(detector, held_out.dataset)
    other = collect_samples(detector, held_out.dataset, batch_size=batch_size)
    # Convolutions round otherwise in other batches, which can exchange proposals of equal score.
    assert_same(one, other, tolerance=1e-3, in_order=False)


def test_workers_change_nothing(detector: nn.Module, held_out: HeldOutData) -> None:
    one, other = (
        collect_samples(detector, held_out.dataset, batch_size=2, num_workers=num_workers)
        for num_workers in (0, 2)
    )
    assert_same(one, other)


def test_an_image_does_not_depend_on_the_others(
    detector: nn.Module, cfg: Config, root: Path, held_out: HeldOutData
) -> None:
    few = open_split(cfg, root, 'calibration', max_images=3)
    assert len(few.dataset) == 3
    assert few.num_listed == 8
    logits, labels, *_ = everything(collect_samples(detector, few.dataset)['distillation'])
    all_logits, all_labels, _, groups = everything(
        collect_samples(detector, held_out.dataset)['distillation']
    )
    assert torch.equal(logits, all_logits[groups < 3])
    assert torch.equal(labels, all_labels[groups < 3])


def test_the_seed_changes_what_is_sampled(detector: nn.Module, held_out: HeldOutData) -> None:
    zero, one = (collect_samples(detector, held_out.dataset, seed=seed) for seed in (0, 1))
    assert not torch.equal(everything(zero['distillation'])[0], everything(one['distillation'])[0])
    for name in ('proposals', 'detections'):
        assert torch.equal(everything(zero[name])[0], everything(one[name])[0])


@torch.no_grad()
def test_proposals_are_what_a_sampler_that_takes_all_would_see(
    detector: nn.Module, held_out: HeldOutData
) -> None:
    sampler = detector.roi_head.bbox_sampler
    detector.roi_head.bbox_sampler = TASK_UTILS.build(dict(type='PseudoSampler'))
    try:
        expected = by_hand(detector.eval(), held_out.dataset, seed=0)
    finally:
        detector.roi_head.bbox_sampler = sampler
    logits, labels, *_ = everything(collect_samples(detector, held_out.dataset)['proposals'])

    def in_order(logits: Tensor) -> Tensor:  # foreground comes first there
        return logits[logits.sum(dim=1).argsort()]

    torch.testing.assert_close(in_order(logits), in_order(expected['logits']))
    assert torch.equal(labels.bincount(), expected['labels'].bincount())


@torch.no_grad()
def test_detections_are_those_of_the_detector(detector: nn.Module, held_out: HeldOutData) -> None:
    logits, labels, _, groups = everything(
        collect_samples(detector, held_out.dataset)['detections']
    )
    for index in range(2):
        batch = detector.eval().data_preprocessor(pseudo_collate([held_out.dataset[index]]), False)
        found = detector.predict(batch['inputs'], batch['data_samples'], rescale=False)[0]
        boxes = found.pred_instances
        probs = logits[groups == index].softmax(dim=1)
        assert len(boxes) == len(probs) > 0
        picked = probs.gather(1, boxes.labels[:, None]).squeeze(1)
        torch.testing.assert_close(picked, boxes.scores)
        assigner = TASK_UTILS.build(
            dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, match_low_quality=False)
        )
        result = assigner.assign(InstanceData(priors=boxes.bboxes), found.gt_instances)
        expected = torch.where(result.gt_inds > 0, result.labels, DIGITS)
        assert torch.equal(labels[groups == index], expected)


@pytest.mark.parametrize('fails', [False, True])
def test_detector_and_random_numbers_are_left_as_they_were(
    detector: nn.Module, held_out: HeldOutData, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector.train()
    detector.backbone.eval()
    modes = [module.training for module in detector.modules()]
    weights = {name: value.clone() for name, value in detector.state_dict().items()}
    sampler = detector.roi_head.bbox_sampler
    if fails:
        monkeypatch.setattr(sampler, 'sample', lambda *args, **kwargs: 1 / 0)
    random_state = torch.get_rng_state()
    if fails:
        with pytest.raises(ZeroDivisionError):
            collect_samples(detector, held_out.dataset)
    else:
        collect_samples(detector, held_out.dataset)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in detector.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in detector.state_dict().items())
    assert all(parameter.requires_grad for parameter in detector.parameters())
    assert detector.roi_head.bbox_sampler is sampler
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in detector.modules()
    )


def test_a_mask_head_takes_no_part(held_out: HeldOutData) -> None:
    model = helpers.detector_config(type='MaskRCNN', num_classes=DIGITS)
    model.roi_head.update(
        mask_roi_extractor=dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=2),
            out_channels=16,
            featmap_strides=[4, 8, 16, 32],
        ),
        mask_head=dict(
            type='FCNMaskHead',
            num_convs=1,
            in_channels=16,
            conv_out_channels=16,
            num_classes=DIGITS,
            loss_mask=dict(type='CrossEntropyLoss', use_mask=True, loss_weight=1.0),
        ),
    )
    model.train_cfg.rcnn.mask_size = 28
    detector = helpers.build(model)
    mask_head = detector.roi_head.mask_head
    assert len(collect_samples(detector, held_out.dataset)['distillation']) == 8 * 32
    assert detector.roi_head.mask_head is mask_head


def test_a_logit_that_is_not_finite_is_named(held_out: HeldOutData) -> None:
    detector = helpers.build(helpers.detector_config(num_classes=DIGITS))
    detector.roi_head.bbox_head.fc_cls.bias.data[2] = torch.nan
    first = held_out.dataset.get_data_info(0)['img_id']
    with pytest.raises(TeacherError, match=f'not finite, the first in image {first}'):
        collect_samples(detector, held_out.dataset)


def test_store_keeps_exact_values_and_leaves_zero_weights_out(tmp_path: Path) -> None:
    store = SampleStore(tmp_path)
    logits = torch.randn(7, 4)
    weights = torch.tensor([1.0, 0, 2, 1, 1, 0, 1])
    for rows in (slice(0, 0), slice(0, 3), slice(3, 7)):
        samples = HeadSamples(
            logits=logits[rows],
            labels=torch.arange(7)[rows] % 4,
            weights=weights[rows],
            locations=torch.zeros(7, 5)[rows],
            activation='softmax',
        )
        store.append(samples, torch.arange(7)[rows])
    keep = weights > 0
    assert len(store) == 5
    for found, expected in zip(everything(store), (logits, torch.arange(7) % 4, weights)):
        assert torch.equal(found, expected[keep])
    assert torch.equal(store.groups, torch.arange(7)[keep])
    assert list(tmp_path.iterdir()) == []  # the file has no name


def test_images_without_objects_are_in_or_out_as_in_training(
    cfg: Config, root: Path, tmp_path: Path
) -> None:
    content = json.loads((root / 'annotations/calibration.json').read_text())
    first = content['images'][0]['id']
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] != first]
    path = tmp_path / 'some.json'
    path.write_text(json.dumps(content))
    detector = helpers.build(helpers.detector_config(num_classes=DIGITS))
    for filter_cfg, count in ((dict(filter_empty_gt=True), 7), (None, 8)):
        cfg.train_dataloader.dataset.filter_cfg = filter_cfg
        data = read_held_out(cfg, path, root / 'calibration', num_classes=DIGITS)
        assert (len(data.dataset), data.num_listed) == (count, 8)
    assert len(collect_samples(detector, data.dataset)['distillation']) == 8 * 32


def test_annotations_are_loaded_once_before_the_resizing() -> None:
    steps = annotated(
        [
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(8, 8)),
            dict(type='LoadAnnotations', with_mask=True),
            dict(type='PackDetInputs', meta_keys=('img_shape',)),
        ]
    )
    assert [step['type'] for step in steps] == [
        'LoadImageFromFile',
        'LoadAnnotations',
        'Resize',
        'PackDetInputs',
    ]
    assert steps[-1]['meta_keys'] == ('img_id', 'img_shape')
    with pytest.raises(ConfigError, match='must load an image'):
        annotated([dict(type='Resize')])


def wrap(cfg: Config) -> None:
    dataset = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = dict(
        type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[dataset])
    )


@pytest.mark.parametrize('change', [lambda cfg: None, wrap], ids=['plain', 'wrapped'])
def test_warns_of_the_training_file(
    cfg: Config, root: Path, tmp_path: Path, change: Callable
) -> None:
    change(cfg)
    assert len(list(leaf_datasets(cfg.train_dataloader.dataset))) == 1
    (warning,) = overlap_warnings(cfg, open_split(cfg, root, 'train'))
    assert 'is the same as' in warning
    assert 'train_dataloader' in warning
    shutil.copytree(root, tmp_path / 'copy')
    (warning,) = overlap_warnings(cfg, open_split(cfg, tmp_path / 'copy', 'train'))
    assert 'is the same as' in warning


def test_warns_of_images_in_common(cfg: Config, root: Path, tmp_path: Path) -> None:
    train, other = (
        json.loads((root / f'annotations/{split}.json').read_text())
        for split in ('train', 'calibration')
    )
    images = train['images'][:2] + other['images'][:3]
    mixed = tmp_path / 'mixed'
    mixed.mkdir()
    for image in images:
        split = 'train' if image in train['images'] else 'calibration'
        shutil.copy(root / split / image['file_name'], mixed)
    ids = {image['id'] for image in images}
    annotations = [
        {**annotation, 'id': number}
        for number, annotation in enumerate(train['annotations'] + other['annotations'])
        if annotation['image_id'] in ids
    ]
    path = tmp_path / 'mixed.json'
    path.write_text(json.dumps({**other, 'images': images, 'annotations': annotations}))
    (warning,) = overlap_warnings(cfg, read_held_out(cfg, path, mixed, num_classes=DIGITS))
    assert warning.startswith('by their file names alone, 2 of 5 images may also be in')
    # The same files are a fact.
    content = json.loads((root / 'annotations/train.json').read_text())
    part = tmp_path / 'part.json'
    part.write_text(json.dumps({**content, 'images': content['images'][:2]}))
    (warning,) = overlap_warnings(cfg, read_held_out(cfg, part, root / 'train', num_classes=DIGITS))
    assert warning.startswith('2 of 2 images are also in')


def test_warns_of_training_images_under_other_names(
    cfg: Config, root: Path, tmp_path: Path
) -> None:
    content = json.loads((root / 'annotations/train.json').read_text())
    for image in content['images']:
        renamed = f'other_{image["file_name"]}'
        shutil.copy(root / 'train' / image['file_name'], tmp_path / renamed)
        image['file_name'] = renamed
    path = tmp_path / 'renamed.json'
    path.write_text(json.dumps(content))
    (warning,) = overlap_warnings(cfg, read_held_out(cfg, path, tmp_path, num_classes=DIGITS))
    assert 'these 8 images, by their ids and sizes, are also in' in warning


def test_warns_of_images_that_judge(cfg: Config, root: Path) -> None:
    (warning,) = overlap_warnings(cfg, open_split(cfg, root, 'val'))
    assert 'val_dataloader' in warning


def test_does_not_warn_of_other_images(cfg: Config, root: Path, held_out: HeldOutData) -> None:
    assert overlap_warnings(cfg, held_out) == []
    cfg.train_dataloader.dataset.ann_file = 'annotations/not_there.json'
    assert overlap_warnings(cfg, held_out) == []


def test_names_in_a_file_or_of_one_class(cfg: Config, root: Path, tmp_path: Path) -> None:
    content = json.loads((root / 'annotations/calibration.json').read_text())
    names = [category['name'] for category in content['categories']]
    (tmp_path / 'names.txt').write_text('\n'.join(names))
    cfg.test_dataloader.dataset.metainfo.classes = str(tmp_path / 'names.txt')
    assert open_split(cfg, root, 'calibration').dataset.metainfo['classes'] == tuple(names)
    cfg.test_dataloader.dataset.metainfo.classes = names[3]
    data = read_held_out(
        cfg, root / 'annotations/calibration.json', root / 'calibration', num_classes=1
    )
    assert data.dataset.metainfo['classes'] == (names[3],)
    cfg.test_dataloader.dataset.metainfo.classes = 3
    with pytest.raises(ConfigError, match="cannot read the class names of the config's test data"):
        open_split(cfg, root, 'calibration')


def test_categories_are_numbered_as_the_data_set_numbers_them(
    cfg: Config, root: Path, tmp_path: Path
) -> None:
    content = json.loads((root / 'annotations/calibration.json').read_text())
    content['categories'].reverse()
    path = tmp_path / 'reversed.json'
    path.write_text(json.dumps(content))
    names = [category['name'] for category in content['categories']]
    read_held_out(cfg, path, root / 'calibration', num_classes=DIGITS, classes=names)
    cfg.test_dataloader.dataset.type = 'Objects365V1Dataset'  # sorts them by id
    read_held_out(cfg, path, root / 'calibration', num_classes=DIGITS, classes=names[::-1])
    with pytest.raises(ConfigError, match='in another order'):
        read_held_out(cfg, path, root / 'calibration', num_classes=DIGITS, classes=names)


def test_a_voc_config_reads_coco_files_with_its_classes(cfg: Config, root: Path) -> None:
    content = json.loads((root / 'annotations/calibration.json').read_text())
    names = DATASETS.get('VOCDataset').METAINFO['classes'][:DIGITS]
    cfg.test_dataloader.dataset.type = 'VOCDataset'
    del cfg.test_dataloader.dataset['metainfo']
    with pytest.raises(ConfigError, match='names 20'):
        open_split(cfg, root, 'calibration')
    assert len(names) == len(content['categories'])
    data = open_split(cfg, root, 'calibration', classes=[c['name'] for c in content['categories']])
    assert len(data.dataset) == 8


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda content: content.pop('images'), 'is no COCO annotation file'),
        (lambda content: content.update(images=[]), 'lists no images'),
        (lambda content: content['categories'].pop(), "no category for 1 of .* e.g. 'nine'"),
        (lambda content: content['categories'].reverse(), 'in another order'),
        (lambda content: content.update(annotations=[]), 'lists no annotations'),
        (
            lambda content: content['annotations'][0].pop('bbox'),
            "mmdet cannot read .*KeyError: 'bbox'",
        ),
        (
            lambda content: content['images'][0].update(file_name='gone.jpg'),
            "1 of 8 images of .*'gone.jpg'",
        ),
    ],
)
def test_wrong_data_are_a_sentence(
    cfg: Config, root: Path, tmp_path: Path, change: Callable, message: str
) -> None:
    content = json.loads((root / 'annotations/calibration.json').read_text())
    change(content)
    path = tmp_path / 'wrong.json'
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        read_held_out(cfg, path, root / 'calibration', num_classes=DIGITS)
