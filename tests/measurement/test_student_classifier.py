"""A student's classifier on objects and on samples, against mmdet's own forwards."""

from __future__ import annotations

import json
from pathlib import Path

import dense_cases
import helpers
import pytest
import query_cases
import torch
import two_stage_cases
from mmdet.structures.bbox import bbox2roi
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate
from torch import Tensor, nn

from calkd_det import config_path
from calkd_det.calibration import brier_score, negative_log_likelihood
from calkd_det.datasets.mini import write_mini_dataset
from calkd_det.measurement.collect import collect_samples
from calkd_det.measurement.held_out import read_held_out
from calkd_det.measurement.student_classifier import (
    collect_objects,
    has_fixed_foreground,
    main,
    measure_student,
)

STUDENT = 'mini/calkd_faster-rcnn_r18-teacher-student_fpn_12e_mini.py'
DIGITS = 10


@pytest.fixture(scope='module')
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The config of a small distilled student on images of its own."""
    root = tmp_path_factory.mktemp('mini')
    write_mini_dataset(root, num_images=dict(train=2, calibration=2, val=4), image_size=96, seed=1)
    cfg = Config.fromfile(config_path(STUDENT))
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = f'{root}/'
    model = helpers.detector_config('CalKDFasterRCNN', num_classes=DIGITS)
    cfg.model = ConfigDict(model, teacher=None, distillation=None)
    return cfg


@pytest.fixture(scope='module')
def dataset(cfg: Config) -> torch.utils.data.Dataset:
    root = Path(cfg.val_dataloader.dataset.data_root)
    return read_held_out(
        cfg, root / 'annotations' / 'val.json', root / 'val', num_classes=DIGITS
    ).dataset


def with_digits(model: ConfigDict, seed: int = 0) -> nn.Module:
    """A detector of the digits with random classifiers, in eval mode."""
    heads = model.bbox_head if 'bbox_head' in model else model.roi_head.bbox_head
    for head in heads if isinstance(heads, list) else [heads]:
        head.num_classes = DIGITS
    detector = helpers.build(model, seed)
    helpers.randomise_batchnorm(detector)
    for name, parameter in detector.named_parameters():
        if 'cls' in name:
            nn.init.normal_(parameter, std=0.3)
    return detector.eval()


def read(detector: nn.Module, dataset: torch.utils.data.Dataset) -> tuple[dict, Tensor]:
    """All images as one batch, and the labels of their objects."""
    batch = detector.data_preprocessor(pseudo_collate([*dataset]), training=False)
    return batch, torch.cat([sample.gt_instances.labels for sample in batch['data_samples']])


@pytest.mark.parametrize('name', ['Faster R-CNN', 'Cascade R-CNN'])
@torch.no_grad()
def test_objects_are_the_ground_truth_boxes_of_the_last_stage(
    dataset: torch.utils.data.Dataset, name: str
) -> None:
    case = next(case for case in two_stage_cases.CASES if case.name == name)
    detector = with_digits(ConfigDict(case.student.to_dict()))
    sampled = collect_samples(detector, dataset)['distillation']
    logits, labels, weights, groups = next(collect_objects(detector, dataset, sampled).chunks())
    batch, expected = read(detector, dataset)
    rois = bbox2roi([sample.gt_instances.bboxes for sample in batch['data_samples']])
    feats = detector.extract_feat(batch['inputs'])
    last = detector.roi_head.num_stages - 1 if name.startswith('Cascade') else 0
    own = two_stage_cases.answer(detector.roi_head, feats, last, rois)
    torch.testing.assert_close(logits, own, rtol=1e-4, atol=1e-4)
    assert labels.tolist() == expected.tolist()
    assert groups.tolist() == rois[:, 0].long().tolist()
    assert set(weights.tolist()) == {1.0}


@pytest.mark.parametrize('name', ['RetinaNet', 'GFL', 'FCOS'])
def test_the_foreground_of_a_dense_head_is_the_same_for_all_students(
    dataset: torch.utils.data.Dataset, name: str
) -> None:
    labels = []
    for seed in (0, 1):
        detector = with_digits(dense_cases.detector_config(name), seed)
        sampled = collect_samples(detector, dataset)['distillation']
        objects = collect_objects(detector, dataset, sampled)
        assert 0 < len(objects) < len(sampled)
        assert int(objects.labels.max()) < DIGITS
        labels.append((objects.labels.tolist(), objects.groups.tolist()))
    assert labels[0] == labels[1]


@pytest.mark.parametrize(
    ('name', 'fixed'),
    [
        *((name, True) for name in ('RetinaNet', 'FCOS', 'ATSS', 'GFL', 'SABL RetinaNet')),
        *((name, True) for name in ('FoveaBox', 'NAS-FCOS', 'CondInst')),
        *((name, False) for name in ('RTMDet', 'YOLOX', 'DDOD')),
    ],
)
def test_heads_that_assign_by_their_predictions_have_no_fixed_foreground(
    name: str, fixed: bool
) -> None:
    assert has_fixed_foreground(helpers.build(dense_cases.detector_config(name))) == fixed


def test_queries_have_no_fixed_foreground() -> None:
    assert not has_fixed_foreground(helpers.build(query_cases.CASES[0].student))


def test_a_distilled_student_is_measured_as_the_plain_detector(
    cfg: Config, dataset: torch.utils.data.Dataset, tmp_path: Path
) -> None:
    detector = helpers.build(helpers.detector_config(num_classes=DIGITS), seed=1)
    helpers.randomise_batchnorm(detector)
    helpers.sharpen_classifier(detector)
    checkpoint, config = tmp_path / 's.pth', tmp_path / 'config.py'
    classes = dataset.metainfo['classes']
    torch.save(
        {'meta': {'dataset_meta': {'classes': classes}}, 'state_dict': detector.state_dict()},
        checkpoint,
    )
    cfg.dump(config)
    assert main([str(config), str(checkpoint), '--out', str(tmp_path / 'found.json')]) == 0
    found = json.loads((tmp_path / 'found.json').read_text())
    assert found == measure_student(cfg, str(checkpoint))
    assert set(found) == {'images', 'objects', 'distillation'}
    sampled = collect_samples(detector.eval(), dataset, batch_size=8)['distillation']
    objects = collect_objects(detector, dataset, sampled)
    for name, store in (('objects', objects), ('distillation', sampled)):
        (logits, labels, *_) = (torch.cat(parts) for parts in zip(*store.chunks()))
        probs = logits.double().softmax(dim=1)
        figures = found[name]
        assert figures['samples'] == len(labels)
        hits = (probs.argmax(dim=1) == labels).double()
        assert figures['accuracy'] == pytest.approx(float(hits.mean()), abs=1e-9)
        assert figures['nll'] == pytest.approx(negative_log_likelihood(logits, labels), rel=1e-5)
        assert figures['brier'] == pytest.approx(brier_score(probs, labels), rel=1e-5)
        gap = abs(float(probs.amax(dim=1).mean() - hits.mean()))
        assert gap - 1e-6 <= figures['ece'] <= 1
    assert found['objects']['samples'] < found['distillation']['samples']
    assert measure_student(cfg, str(checkpoint), max_images=2)['images'] == 2


@pytest.mark.parametrize(
    ('name', 'has_objects'), [('RetinaNet', True), ('GFL', True), ('RTMDet', False)]
)
def test_a_dense_student_has_objects_where_its_assigner_looks_at_boxes_alone(
    cfg: Config, dataset: torch.utils.data.Dataset, tmp_path: Path, name: str, has_objects: bool
) -> None:
    model = dense_cases.detector_config(name)
    detector = with_digits(model)
    checkpoint = tmp_path / 's.pth'
    classes = dataset.metainfo['classes']
    torch.save(
        {'meta': {'dataset_meta': {'classes': classes}}, 'state_dict': detector.state_dict()},
        checkpoint,
    )
    dense = Config({**cfg.to_dict(), 'model': model.to_dict()})
    found = measure_student(dense, str(checkpoint))
    assert (found['objects'] is not None) == has_objects
    if has_objects:
        sampled = collect_samples(detector, dataset, batch_size=8)['distillation']
        store = collect_objects(detector, dataset, sampled)
        logits, labels, *_ = (torch.cat(parts) for parts in zip(*store.chunks()))
        probs = logits.double().sigmoid()
        hits = (probs.argmax(dim=1) == labels).double()
        assert found['objects']['samples'] == len(labels)
        assert found['objects']['accuracy'] == pytest.approx(float(hits.mean()))
        target = torch.nn.functional.one_hot(labels, DIGITS).double()
        squares = (probs - target).square().sum(dim=1)
        assert found['objects']['brier'] == pytest.approx(float(squares.mean()), rel=1e-5)


def test_a_mistake_is_told_without_a_traceback(
    cfg: Config, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = tmp_path / 'config.py'
    cfg.dump(config)
    assert main([str(config), str(tmp_path / 'none.pth'), '--out', str(tmp_path / 'x')]) == 1
    assert 'error: ' in capsys.readouterr().err
