"""Queries with masks: matched by classes and masks, of two heads, calibrated, and refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import helpers
import mask_query_cases
import pytest
import query_cases
import torch
from helpers import CLASSES
from mmengine.config import ConfigDict
from pairs import distillation_losses, freeze_batchnorm, save
from query_cases import distilled
from torch import nn

from calkd_det.errors import ConfigError
from calkd_det.measurement.collect import collect_samples
from calkd_det.measurement.held_out import annotated
from calkd_det.taps import find_tap
from calkd_det.taps.mask_queries import MaskQueryTap
from calkd_det.taps.query_matching import MaskQueries, match_queries, matching_costs
from calkd_det.taps.self_test import check_answers
from calkd_det.teachers import network

NUM_CLASSES = len(CLASSES)
NAMES = tuple(mask_query_cases.ZOO)


def random_queries(number: int, seed: int, size: tuple[int, int] = (6, 8)) -> MaskQueries:
    generator = torch.Generator().manual_seed(seed)
    return MaskQueries(
        2 * torch.randn(2, number, NUM_CLASSES + 1, generator=generator),
        3 * torch.randn(2, number, *size, generator=generator),
    )


def test_costs_by_their_definition() -> None:
    student, teacher = random_queries(3, seed=1), random_queries(2, seed=2)
    costs = matching_costs(student, teacher, 'softmax')
    assert costs.shape == (2, 3, 2)
    for image, row, column in ((0, 0, 0), (0, 2, 1), (1, 1, 0)):
        z, t = student.logits[image, row], teacher.logits[image, column]
        expected = nn.functional.cross_entropy(z, t.softmax(dim=0))
        expected += 2.5 * mask_query_cases.mask_cost(
            student.masks[image, row], teacher.masks[image, column].sigmoid()
        )
        assert costs[image, row, column] == pytest.approx(float(expected), rel=1e-5)


def test_masks_tell_queries_of_the_same_class_apart() -> None:
    """Masks of the teacher, of twice the size, in another order."""
    small = random_queries(4, seed=1)
    order = torch.tensor([2, 0, 3, 1])
    masks = nn.functional.interpolate(small.masks[:, order], scale_factor=2, mode='nearest')
    teacher = MaskQueries(torch.zeros_like(small.logits), masks)
    student = MaskQueries(torch.zeros_like(small.logits), small.masks)
    matches = match_queries(student, teacher, 'softmax')
    assert matches.tolist() == [order.argsort().tolist()] * 2


@pytest.mark.parametrize('name', NAMES)
def test_answers_are_those_of_the_whole_head_on_random_features(name: str) -> None:
    detector = helpers.build(mask_query_cases.detector_config(name)).eval()
    check_answers(MaskQueryTap(), detector, 'model')


def mask_distilled(
    student: ConfigDict, teacher: ConfigDict, checkpoint: Path, **options: Any
) -> nn.Module:
    cfg = copy.deepcopy(student)
    cfg.type = f'CalKD{student.type}'
    cfg.teacher = dict(
        config=dict(model=teacher.to_dict()),
        checkpoint=str(checkpoint),
        calibrator=dict(type='TemperatureScaling', temperature=1.0),
        **options,
    )
    cfg.distillation = dict(cls=dict(type='KDLoss'))
    detector = helpers.build(cfg)
    detector.init_weights()
    return detector.train()


@pytest.mark.parametrize('name', NAMES)
def test_all_layers_of_a_detector_that_teaches_itself(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, 'fold_batchnorm', lambda detector: detector)
    cfg = mask_query_cases.detector_config(name)
    itself = helpers.build(cfg)
    save(itself, tmp_path / 'teacher.pth', CLASSES)
    layers = find_tap(itself, 'model').classifiers(itself)
    # Mask2Former also classifies its queries before the first of two layers.
    assert layers == (('d0', '') if name == 'MaskFormer' else ('d0', 'd1', ''))
    detector = mask_distilled(cfg, cfg, tmp_path / 'teacher.pth', stages=list(range(len(layers))))
    detector.load_state_dict(itself.state_dict())
    freeze_batchnorm(detector)
    for counts in ((3, 3), (0, 2), (0, 0), (15, 1)):  # of 12 queries
        data = helpers.batch(num_boxes=15, masks=True)
        for sample, count in zip(data['data_samples'], counts):
            sample.gt_instances = sample.gt_instances[:count]
        losses = distillation_losses(helpers.loss(detector, data))
        names = {f'{layer}.loss_kd_cls' if layer else 'loss_kd_cls' for layer in layers}
        assert losses.keys() == names
        assert all(abs(value.item()) < 1e-6 for value in losses.values()), losses


def test_mask2former_teaches_maskformer(tmp_path: Path) -> None:
    student, teacher = (mask_query_cases.detector_config(name) for name in NAMES)
    teacher.panoptic_head.num_queries = 7
    save(helpers.build(teacher, seed=1), tmp_path / 'teacher.pth', CLASSES)
    detector = mask_distilled(student, teacher, tmp_path / 'teacher.pth')
    losses = distillation_losses(helpers.loss(detector, helpers.batch(masks=True)))
    assert losses.keys() == {'loss_kd_cls'}
    assert losses['loss_kd_cls'] > 1e-3


@pytest.mark.parametrize('name', NAMES)
def test_stuff_is_taught_as_objects_are(name: str, tmp_path: Path) -> None:
    cfg = mask_query_cases.detector_config(name)
    for part in (cfg.panoptic_head, cfg.panoptic_fusion_head):
        part.num_stuff_classes = 2
    cfg.panoptic_head.loss_cls.class_weight = [1.0] * 5 + [0.1]
    cfg.data_preprocessor.update(pad_seg=True, seg_pad_value=255)
    classes = (*CLASSES, 'sky', 'road')
    save(helpers.build(cfg, seed=1), tmp_path / 'teacher.pth', classes)
    detector = mask_distilled(cfg, cfg, tmp_path / 'teacher.pth')
    data = helpers.batch(masks=True, segmentation=5)
    tap = find_tap(detector, 'model')
    batch = detector.data_preprocessor(copy.deepcopy(data), True)
    with tap.record(detector, data_samples=batch['data_samples']) as recorded:
        losses = distillation_losses(detector(**batch, mode='loss'))
    assert losses['loss_kd_cls'] > 1e-4
    assert recorded[-1].num_classes == 5
    assert set(recorded[-1].labels.tolist()) >= {3, 4, 5}


@pytest.mark.parametrize('masks_first', [True, False])
def test_queries_with_masks_and_with_boxes_do_not_teach_each_other(
    masks_first: bool, tmp_path: Path
) -> None:
    with_masks = mask_query_cases.detector_config('Mask2Former')
    with_boxes = query_cases.detector_config('DETR')
    sentences = 'queries with masks, the teacher queries: it', 'queries, the teacher queries with'
    if masks_first:
        with pytest.raises(ConfigError, match=f'model.teacher.config: .*{sentences[0]}'):
            mask_distilled(with_masks, with_boxes, tmp_path / 'none.pth')
    else:
        with pytest.raises(ConfigError, match=f'model.teacher.config: .*{sentences[1]}'):
            mask_distilled(with_boxes, with_masks, tmp_path / 'none.pth')


def test_boxes_of_queries_with_masks_are_refused(tmp_path: Path) -> None:
    cfg = mask_query_cases.detector_config('MaskFormer')
    words = (
        'MaskFormerHead as its panoptic_head, MaskFormerFusionHead as its panoptic_fusion_head, '
        'but not its boxes: its queries predict masks and no boxes'
    )
    with pytest.raises(ConfigError, match=words):
        distilled(cfg, cfg, tmp_path / 'none.pth')


# Calibration


def data_set(counts: tuple[int, ...]) -> list[dict[str, Any]]:
    found = []
    for number, count in enumerate(counts):
        data = helpers.batch(
            sizes=[(64, 96 - 16 * number)], num_boxes=count, seed=number, masks=True
        )
        data['data_samples'][0].set_metainfo(dict(img_id=number))
        found.append({key: values[0] for key, values in data.items()})
    return found


@pytest.mark.parametrize('name', NAMES)
def test_queries_are_collected_image_by_image_and_by_their_object(name: str) -> None:
    detector = helpers.build(mask_query_cases.detector_config(name))
    stores = collect_samples(detector, data_set((0, 1, 2)), batch_size=2)
    assert stores.keys() == MaskQueryTap.set_descriptions.keys()
    assert stores['matched'].groups.tolist() == [1, 2, 2]
    assert len(stores['rest']) == 3 * 12 - 3
    labels = [sample['data_samples'].gt_instances.labels for sample in data_set((0, 1, 2))]
    assert stores['matched'].labels.sort()[0].tolist() == sorted(torch.cat(labels).tolist())
    again = collect_samples(detector, data_set((0, 1, 2)), batch_size=2)
    assert torch.equal(again['distillation'].labels, stores['distillation'].labels)


def test_a_detector_of_stuff_cannot_be_calibrated() -> None:
    cfg = mask_query_cases.detector_config('Mask2Former')
    cfg.panoptic_head.num_stuff_classes = 2
    cfg.panoptic_head.loss_cls.class_weight = [1.0] * 5 + [0.1]
    with pytest.raises(ConfigError, match=r'num_stuff_classes is 2: a detector of stuff cannot'):
        collect_samples(helpers.build(cfg), data_set((1,)))


def test_a_detector_without_an_assigner_cannot_be_calibrated() -> None:
    cfg = mask_query_cases.detector_config('MaskFormer', train_cfg=None)
    with pytest.raises(ConfigError, match=r'model\.train_cfg has no assigner'):
        collect_samples(helpers.build(cfg), data_set((1,)))


def test_masks_are_loaded_where_they_are_asked_for() -> None:
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackDetInputs')]
    for with_mask in (False, True):
        steps = annotated(pipeline, with_mask)
        assert steps[1]['type'] == 'LoadAnnotations'
        assert steps[1].get('with_mask', False) == with_mask
