"""Batches as real data sets give them: a distilled step does what the plain detector does."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmengine.config import ConfigDict
from mmengine.logging import MessageHub
from mmengine.structures import InstanceData
from torch import Tensor, nn

from calkd_det.teachers.input_map import match_inputs

Teacher = tuple[nn.Module, Path]
Batch = dict[str, list]


def without_objects() -> Batch:
    return helpers.batch(num_boxes=0)


def one_image_without_objects() -> Batch:
    data = helpers.batch()
    data['data_samples'][0].gt_instances = helpers.batch(num_boxes=0)['data_samples'][
        0
    ].gt_instances
    return data


def differing_sizes() -> Batch:
    return helpers.batch(sizes=((33, 120), (128, 40), (64, 64)))


def one_image() -> Batch:
    return helpers.batch(sizes=((70, 90),))


def crowds() -> Batch:
    """As the loader leaves ``iscrowd`` boxes: among those that the assigners ignore."""
    data = helpers.batch()
    for sample in data['data_samples']:
        sample.ignored_instances = InstanceData(
            bboxes=torch.tensor([[0.0, 0, 60, 60], [20, 10, 70, 64]]), labels=torch.tensor([0, 1])
        )
    return data


def crowds_alone() -> Batch:
    data = crowds()
    for sample, empty in zip(data['data_samples'], without_objects()['data_samples']):
        sample.gt_instances = empty.gt_instances
    return data


def more_objects_than_rois() -> Batch:
    return helpers.batch(num_boxes=100)


def boxes_outside_the_image() -> Batch:
    data = helpers.batch()
    for sample in data['data_samples']:
        sample.gt_instances.bboxes[0] = torch.tensor([-40.0, -30, 20, 25])
        sample.gt_instances.bboxes[1] = torch.tensor([500.0, 500, 600, 600])
    return data


def boxes_without_width() -> Batch:
    data = helpers.batch()
    for sample in data['data_samples']:
        sample.gt_instances.bboxes[0] = torch.tensor([10.0, 10, 10, 40])
        sample.gt_instances.bboxes[1] = torch.tensor([10.0, 10, 10, 10])
    return data


def boxes_turned_round() -> Batch:
    data = helpers.batch()
    for sample in data['data_samples']:
        sample.gt_instances.bboxes[0] = torch.tensor([40.0, 40, 10, 10])
    return data


def a_label_too_high() -> Batch:
    data = helpers.batch()
    data['data_samples'][0].gt_instances.labels[0] = len(helpers.CLASSES) + 5
    return data


def distilled(teacher_config: ConfigDict, teacher: Teacher, **extra: Any) -> nn.Module:
    """A distilled student; ``extra`` goes into its ``data_preprocessor``."""
    cfg = helpers.distilled_config(teacher_config, teacher[1])
    cfg.data_preprocessor.update(extra)
    detector = helpers.build(cfg)
    detector.init_weights()
    return detector.train()


def plain(like: nn.Module, **extra: Any) -> nn.Module:
    cfg = helpers.detector_config()
    cfg.data_preprocessor.update(extra)
    detector = helpers.build(cfg)
    detector.load_state_dict(like.state_dict())
    return detector.train()


def step(detector: nn.Module, data: Batch) -> dict[str, Tensor]:
    torch.manual_seed(5)
    losses = helpers.loss(detector, data)
    total, logs = detector.parse_losses(losses)
    total.backward()
    return logs


def assert_plain_losses_and_a_finite_one_more(
    logs: dict[str, Tensor], plain_logs: dict[str, Tensor]
) -> None:
    assert logs.keys() - plain_logs.keys() == {
        'loss_kd', 'teacher_confidence', 'teacher_accuracy', 'teacher_agreement'
    }  # fmt: skip
    for key in plain_logs.keys() - {'loss'}:
        assert torch.equal(logs[key], plain_logs[key]) or (
            logs[key].isnan() and plain_logs[key].isnan()
        ), key
    assert logs['loss_kd'].isfinite()
    assert logs['loss_kd'] >= 0


@pytest.mark.parametrize(
    'make',
    [
        without_objects,
        one_image_without_objects,
        differing_sizes,
        one_image,
        crowds,
        crowds_alone,
        more_objects_than_rois,
        boxes_outside_the_image,
        boxes_without_width,
    ],
    ids=lambda make: make.__name__,
)
def test_a_hard_batch_costs_what_it_costs_the_plain_detector(
    make: Callable[[], Batch], teacher_config: ConfigDict, teacher: Teacher
) -> None:
    detector = distilled(teacher_config, teacher)
    plain_logs = step(plain(detector), make())
    assert_plain_losses_and_a_finite_one_more(step(detector, make()), plain_logs)


@pytest.mark.parametrize('make', [crowds, crowds_alone], ids=lambda make: make.__name__)
def test_crowds_that_the_assigner_ignores(
    make: Callable[[], Batch], teacher_config: ConfigDict, teacher: Teacher
) -> None:
    detector = distilled(teacher_config, teacher)
    reference = plain(detector)
    for head in (detector.roi_head, reference.roi_head):
        head.bbox_assigner.ignore_iof_thr = 0.5
    plain_logs = step(reference, make())
    assert_plain_losses_and_a_finite_one_more(step(detector, make()), plain_logs)


@pytest.mark.parametrize(
    'make', [boxes_turned_round, a_label_too_high], ids=lambda make: make.__name__
)
def test_what_the_plain_detector_refuses_is_refused_in_its_words(
    make: Callable[[], Batch], teacher_config: ConfigDict, teacher: Teacher
) -> None:
    detector = distilled(teacher_config, teacher)
    with pytest.raises(Exception) as expected:  # noqa: PT011  whatever it is
        step(plain(detector), make())
    with pytest.raises(type(expected.value), match=re.escape(str(expected.value))):
        step(detector, make())


# Batch augmentation: the data preprocessor changes the sizes of the images after normalising

CAFFE = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False)
RESIZE = dict(type='BatchSyncRandomResize', random_size_range=(128, 160), interval=1)
PAD = dict(type='BatchFixedSizePad', size=(160, 160), img_pad_value=3)


@pytest.fixture
def _iteration() -> None:
    """What a train loop tells ``BatchSyncRandomResize``."""
    MessageHub.get_current_instance().update_info('iter', 0)


@pytest.mark.parametrize('augment', [RESIZE, PAD], ids=lambda value: value['type'])
@pytest.mark.usefixtures('_iteration')
def test_batch_augmentation_is_seen_by_teacher_and_student_alike(
    augment: dict, teacher_config: ConfigDict, teacher: Teacher
) -> None:
    teacher_config = copy.deepcopy(teacher_config)
    teacher_config.data_preprocessor.update(CAFFE)
    detector = distilled(teacher_config, teacher, batch_augments=[augment])
    seen: list[Tensor] = []
    network = detector.teacher.network
    network.input_map.register_forward_hook(lambda module, args, output: seen.extend(args[:1]))
    own = plain(detector, batch_augments=[augment])
    for _ in range(2):  # the sizes change from the second batch on
        random.seed(3)
        plain_logs = step(own, helpers.batch())
        random.seed(3)
        assert_plain_losses_and_a_finite_one_more(step(detector, helpers.batch()), plain_logs)
    sizes = {tuple(images.shape[-2:]) for images in seen}
    assert len(sizes) == (2 if augment is RESIZE else 1)


@pytest.mark.usefixtures('_iteration')
def test_resized_batches_are_normalised_for_the_teacher_within_their_new_sizes() -> None:
    student, teacher = (
        DetDataPreprocessor(pad_size_divisor=32, batch_augments=[RESIZE], **norm)
        for norm in (dict(mean=[1.0, 2, 3], std=[50.0, 60, 70], bgr_to_rgb=True), CAFFE)
    )
    for preprocessor in (student, teacher):
        preprocessor.batch_augments[0]._input_size = (160, 192)
    data = student(copy.deepcopy(helpers.batch()), True)
    expected = teacher(copy.deepcopy(helpers.batch()), True)['inputs']
    shapes = [sample.img_shape[:2] for sample in data['data_samples']]
    assert shapes == [(106, 192), (160, 160)]  # of a batch padded to 96 x 96
    result = match_inputs(student, teacher)(data['inputs'], shapes)
    assert result.shape == expected.shape
    for ours, theirs, (height, width) in zip(result, expected, shapes):
        # The last pixels of a resized image are mixed with its padding.
        inner = slice(None), slice(height - 2), slice(width - 2)
        assert torch.allclose(ours[inner], theirs[inner], atol=2e-3)
        assert (ours[:, height:] == 0).all()
        assert (ours[:, :, width:] == 0).all()
