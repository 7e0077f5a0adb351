"""Samples of a two-stage detector besides those of its loss: all proposals, and detections."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.models.layers import multiclass_nms
from mmdet.models.roi_heads import SCNetRoIHead
from mmdet.models.task_modules import AssignResult, BaseSampler, SamplingResult
from mmdet.structures import DetDataSample, SampleList
from mmdet.structures.bbox import bbox2roi
from mmengine.structures import InstanceData
from torch import Tensor, nn

from calkd_det.knowledge import Activation, HeadSamples


@dataclass(frozen=True)
class SampledImage:
    """Inputs of a RoI head's sampler for one image.

    Attributes:
        proposals: Boxes, float, shape (P, 4), x1, y1, x2, y2 in pixels of the batched image.
        assigned: Index of the assigned ground truth plus one, 0 for the background, -1 for
            ignored, int64, shape (P,).
        labels: Class of the assigned ground truth, -1 without one, int64, shape (P,).
        feats: Feature maps of the image, each (1, D, H, W).
    """

    proposals: Tensor
    assigned: Tensor
    labels: Tensor
    feats: tuple[Tensor, ...]


@contextmanager
def watch_sampler(roi_head: nn.Module, seeds: Sequence[int]) -> Iterator[list[SampledImage]]:
    """Seed a RoI head's samplers for each image, and record the inputs of the first sampler.

    Branches that take no part in classification are switched off in the block, because their
    losses would need masks or a segmentation. Statistics that a head keeps of its samples are not
    updated. Head and samplers are restored on leaving, also after an error.

    Args:
        roi_head: A RoI head of mmdet that a tap supports.
        seeds: One for each image of the batch.

    Returns:
        A context manager that gives a list. The list gets one entry for each image.
    """
    sampler = roi_head.bbox_sampler
    samplers = [
        _RecordingSampler(each, seeds)
        for each in (sampler if isinstance(sampler, list) else [sampler])
    ]
    with ExitStack() as stack:
        for name, value in {
            'bbox_sampler': samplers if isinstance(sampler, list) else samplers[0],
            'mask_head': None,
            'interleaved': False,  # HTC refines the boxes of the next stage for its masks
            'iou_history': [],  # statistics that Dynamic R-CNN keeps of its samples
            'beta_history': [],
        }.items():
            if getattr(roi_head, name, None) is not None:
                stack.enter_context(_replaced(roi_head, name, value))
        if 'dynamic_rcnn' in (roi_head.train_cfg or {}):
            stack.enter_context(
                _replaced(roi_head.train_cfg.dynamic_rcnn, 'update_iter_interval', sys.maxsize)
            )
        if getattr(roi_head, 'semantic_head', None) is not None:
            semantic = _FeaturesOnly(roi_head.semantic_head)
            stack.enter_context(_replaced(roi_head, 'semantic_head', semantic))
        if isinstance(roi_head, SCNetRoIHead):  # which calls its mask loss even without a mask head
            roi_head.mask_loss = lambda *args, **kwargs: {'loss_mask': {'loss_mask': 0}}
            stack.callback(delattr, roi_head, 'mask_loss')
        yield samplers[0].images


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    old = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, old)


class _FeaturesOnly(nn.Module):
    """Semantic head whose loss is zero."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, feats: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        return self.head(feats)

    def loss(self, prediction: Tensor, segmentation: Tensor) -> Tensor:
        return prediction.sum() * 0


def classify_proposals(
    detector: nn.Module, images: Sequence[SampledImage], activation: Activation
) -> HeadSamples:
    """Return samples of every proposal that the assigner does not ignore."""
    parts = []
    for image in images:
        keep = image.assigned >= 0
        rois = bbox2roi([image.proposals[keep]])
        logits = detector.roi_head._bbox_forward(image.feats, rois)['cls_score']
        labels = _with_background(detector, image.assigned[keep], image.labels[keep])
        parts.append((logits, labels, rois))
    return _concatenate(parts, activation)


def classify_detections(
    detector: nn.Module,
    images: Sequence[SampledImage],
    data_samples: SampleList,
    activation: Activation,
) -> HeadSamples:
    """Return samples of the RoIs whose boxes are left after NMS with the test settings.

    The label of a RoI is that of its regressed box. A RoI whose boxes are kept for two classes
    appears twice.
    """
    return _concatenate(
        [
            _classify_image_detections(detector, image.feats, data_sample)
            for image, data_sample in zip(images, data_samples)
        ],
        activation,
    )


def _classify_image_detections(
    detector: nn.Module, feats: tuple[Tensor, ...], data_sample: DetDataSample
) -> tuple[Tensor, Tensor, Tensor]:
    roi_head = detector.roi_head
    (proposals,) = detector.rpn_head.predict(feats, [data_sample], rescale=False)
    rois = bbox2roi([proposals.bboxes])
    answer = roi_head._bbox_forward(feats, rois)
    (raw,) = roi_head.bbox_head.predict_by_feat(
        (rois,), (answer['cls_score'],), (answer['bbox_pred'],), [data_sample.metainfo]
    )
    cfg = roi_head.test_cfg
    boxes, _, kept = multiclass_nms(
        raw.bboxes, raw.scores, cfg.score_thr, cfg.nms, cfg.max_per_img, return_inds=True
    )
    rows = kept // roi_head.bbox_head.num_classes  # NMS counts (RoI, class) pairs
    result = roi_head.bbox_assigner.assign(
        InstanceData(priors=boxes[:, :4]),
        data_sample.gt_instances,
        data_sample.get('ignored_instances'),
    )
    keep = result.gt_inds >= 0
    labels = _with_background(detector, result.gt_inds[keep], result.labels[keep])
    return answer['cls_score'][rows[keep]], labels, rois[rows[keep]]


def _with_background(detector: nn.Module, assigned: Tensor, labels: Tensor) -> Tensor:
    return torch.where(assigned > 0, labels, detector.roi_head.bbox_head.num_classes)


def _concatenate(
    parts: Sequence[tuple[Tensor, Tensor, Tensor]], activation: Activation
) -> HeadSamples:
    for index, (_, _, rois) in enumerate(parts):
        rois[:, 0] = index
    logits, labels, rois = (torch.cat(values) for values in zip(*parts))
    return HeadSamples(
        logits=logits,
        labels=labels,
        weights=logits.new_ones(len(labels)),
        locations=rois,
        activation=activation,
    )


class _RecordingSampler:
    def __init__(self, sampler: BaseSampler, seeds: Sequence[int]) -> None:
        self.sampler = sampler
        self.seeds = seeds
        self.images: list[SampledImage] = []

    def sample(
        self,
        assign_result: AssignResult,
        pred_instances: InstanceData,
        gt_instances: InstanceData,
        feats: Sequence[Tensor],
    ) -> SamplingResult:
        seed = self.seeds[len(self.images)]
        image = SampledImage(
            pred_instances.priors, assign_result.gt_inds, assign_result.labels, tuple(feats)
        )
        self.images.append(image)
        torch.manual_seed(seed)
        return self.sampler.sample(assign_result, pred_instances, gt_instances, feats=feats)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sampler, name)
