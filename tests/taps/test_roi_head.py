"""The RoI tap beside the plain case: other samplers, other teachers, and what it leaves alone."""

from __future__ import annotations

import copy
from pathlib import Path

import helpers
import pytest
import torch
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from torch import Tensor, nn

from calkd_det.errors import ConfigError
from calkd_det.taps import find_tap

Teacher = tuple[nn.Module, Path]


def test_with_ohem_the_samples_are_those_of_the_final_loss(
    teacher_config: ConfigDict, teacher: Teacher
) -> None:
    """OHEM forwards the box head, and computes its loss, over all proposals before it samples."""
    cfg = helpers.distilled_config(teacher_config, teacher[1])
    cfg.train_cfg.rcnn.sampler.type = 'OHEMSampler'
    detector = helpers.build(cfg)
    detector.init_weights()
    calls: list[Tensor] = []
    loss_cls = detector.roi_head.bbox_head.loss_cls
    loss_cls.register_forward_hook(lambda module, args, output: calls.append(args[1]))
    asked: list[Tensor] = []
    detector.teacher.network.register_forward_hook(
        lambda module, args, output: asked.extend(samples.labels for samples in args[1])
    )
    losses = helpers.loss(detector.train(), helpers.batch())
    assert len(calls) > 1
    assert len(asked) == 1
    assert asked[0] is calls[-1]
    assert losses['loss_kd'] > 0


def test_a_mask_rcnn_teaches_boxes(tmp_path: Path) -> None:
    model = helpers.detector_config()
    zoo = get_config('mmdet::_base_/models/mask-rcnn_r50_fpn.py').model
    model.type = 'MaskRCNN'
    model.roi_head.mask_roi_extractor = zoo.roi_head.mask_roi_extractor
    model.roi_head.mask_roi_extractor.out_channels = 16
    model.roi_head.mask_head = zoo.roi_head.mask_head
    model.roi_head.mask_head.update(in_channels=16, conv_out_channels=16, num_classes=3)
    model.test_cfg.rcnn.mask_thr_binary = 0.5
    model.train_cfg.rcnn.mask_size = 28
    mask_rcnn = helpers.build(model)
    torch.save(dict(state_dict=mask_rcnn.state_dict()), tmp_path / 'teacher.pth')
    detector = helpers.build(helpers.distilled_config(model, tmp_path / 'teacher.pth'))
    detector.init_weights()
    assert helpers.loss(detector.train(), helpers.batch())['loss_kd'] > 0
    left = {name.split('.')[0] for name, _ in detector.teacher.network.detector.named_parameters()}
    assert left == {'backbone', 'neck', 'roi_head'}
    assert not any('mask' in name for name, _ in detector.teacher.network.named_parameters())


def test_the_classification_branch_is_the_whole_heads(teacher: Teacher) -> None:
    detector = copy.deepcopy(teacher[0])
    tap = find_tap(detector, 'model')
    feats = tuple(torch.randn(2, 16, 24 // 2**i, 24 // 2**i) for i in range(4))
    rois = torch.tensor([[0, 4.0, 4, 40, 40], [1, 10.0, 20, 60, 70]])
    with torch.no_grad():
        expected = detector.roi_head._bbox_forward(feats, rois)['cls_score']
        tap.keep(detector)
        answer = detector.roi_head._bbox_forward(feats, rois)
    assert torch.equal(answer['cls_score'], expected)
    assert answer['bbox_pred'] is None


@MODELS.register_module()
class OtherRoIHead(StandardRoIHead):
    """A subclass may forward its box head in ways that the tap has not been tried on."""


def test_a_head_that_was_not_tried_is_refused_by_name() -> None:
    cfg = helpers.detector_config()
    cfg.roi_head.type = 'OtherRoIHead'
    with pytest.raises(ConfigError, match=r'model: .* FasterRCNN with OtherRoIHead'):
        find_tap(helpers.build(cfg), 'model')
