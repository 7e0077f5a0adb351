"""The target of the score of a sample's class, of heads that are trained to predict a quality."""

from __future__ import annotations

from typing import Any

import dense_cases
import helpers
import pytest
import query_cases
import torch
from torch import Tensor, nn

from calkd_det.knowledge import HeadSamples
from calkd_det.taps import find_tap
from calkd_det.taps.dense_samples import share_of_background
from calkd_det.taps.queries import QueryTap, predict_queries

QUALITIES = ['GFL', 'RTMDet', 'RTMDet-Ins', 'YOLOX']
LABELS = ['RetinaNet', 'FCOS', 'ATSS']


def recorded(name: str) -> tuple[HeadSamples, list[Any], nn.Module]:
    """Return the samples of one step, the targets that mmdet's loss was given, and the detector."""
    detector = helpers.build(dense_cases.detector_config(name))
    detector.init_weights()
    targets: list[Any] = []
    handle = detector.bbox_head.loss_cls.register_forward_pre_hook(
        lambda module, args: targets.append(args[1])
    )
    data = helpers.batch(masks=name == 'RTMDet-Ins')
    with find_tap(detector, 'model').record(detector) as samples:
        helpers.loss(detector, data)
    handle.remove()
    return samples[0], targets, detector


def of_class(samples: HeadSamples) -> Tensor:
    """Return the target of each foreground sample, by class and then by size."""
    chosen = samples.labels < samples.num_classes
    pairs = torch.stack([samples.labels[chosen].float(), samples.qualities[chosen]], dim=1)
    return pairs[(pairs[:, 0] * 10 + pairs[:, 1]).argsort()]


@pytest.mark.parametrize('name', QUALITIES)
def test_qualities_are_the_targets_of_the_loss(name: str) -> None:
    samples, targets, _ = recorded(name)
    assert samples.qualities.shape == samples.labels.shape
    if name == 'YOLOX':  # a row of classes for each foreground sample, image by image
        rows = torch.cat(targets)
        labels = rows.argmax(dim=1)
        expected = torch.stack([labels.float(), rows.amax(dim=1)], dim=1)
        expected = expected[(expected[:, 0] * 10 + expected[:, 1]).argsort()]
        torch.testing.assert_close(of_class(samples), expected)
    else:
        expected = torch.cat([target[1] for target in targets])
        assert torch.equal(samples.qualities, expected)
    foreground = samples.qualities[samples.labels < samples.num_classes]
    assert len(foreground) > 0
    assert foreground.min() >= 0
    assert foreground.max() <= 1
    assert foreground.unique().numel() > 1


@pytest.mark.parametrize('name', ['Deformable DETR', 'DINO'])
def test_qualities_of_queries_are_the_targets_of_the_loss(name: str) -> None:
    model = query_cases.detector_config(name)
    model.bbox_head.loss_cls = dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0)
    detector = helpers.build(model).eval()
    data = detector.data_preprocessor(helpers.batch(num_boxes=4), False)
    samples = QueryTap().sample_sets(detector, data['inputs'], data['data_samples'], [0, 1])
    targets: list[Any] = []
    detector.bbox_head.loss_cls.register_forward_pre_hook(
        lambda module, args: targets.append(args[1])
    )
    layers, _ = predict_queries(
        detector, detector.extract_feat(data['inputs']), data['data_samples']
    )
    detector.bbox_head.loss_by_feat_single(
        layers[-1].logits,
        layers[-1].boxes,
        [sample.gt_instances for sample in data['data_samples']],
        [sample.metainfo for sample in data['data_samples']],
    )
    ((labels, qualities),) = targets
    whole = samples['distillation']
    foreground = labels < whole.num_classes
    assert torch.equal(whole.labels, labels)
    torch.testing.assert_close(whole.qualities[foreground], qualities[foreground])
    assert torch.equal(samples['matched'].qualities, whole.qualities[foreground])


@pytest.mark.parametrize('name', LABELS)
def test_heads_that_are_trained_to_labels_have_none(name: str) -> None:
    samples, _, _ = recorded(name)
    assert samples.qualities is None


@pytest.mark.parametrize('name', ['GFL', 'YOLOX', 'RetinaNet'])
def test_a_share_of_the_samples_keeps_theirs(name: str) -> None:
    samples, _, _ = recorded(name)
    share = share_of_background(samples, 1 if name != 'RetinaNet' else 9, [0, 1])
    if samples.qualities is None:
        assert share.qualities is None
        return
    assert share.qualities.shape == share.labels.shape
    torch.testing.assert_close(of_class(share), of_class(samples))
    chosen = share.select(share.labels < share.num_classes)
    assert torch.equal(chosen.qualities, share.qualities[share.labels < share.num_classes])
