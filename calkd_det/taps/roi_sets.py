"""Sets of boxes, beside the sampled RoIs, that a two-stage detector's classifier can be asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.models.layers import multiclass_nms
from mmdet.models.task_modules import AssignResult, BaseSampler, SamplingResult
from mmdet.structures import DetDataSample, SampleList
from mmdet.structures.bbox import bbox2roi
from mmengine.structures import InstanceData
from torch import Tensor, nn

from calkd_det.taps.samples import Activation, ClassifierSamples


@dataclass(frozen=True)
class SeenImage:
    """What a RoI head's sampler was given for one image.

    Attributes:
        proposals: Boxes, float, shape (P, 4), x1, y1, x2, y2 in pixels of the batched image.
        assigned: Index of the assigned ground truth plus one, 0 for the background, -1 for
            ignored, int64, shape (P,).
        labels: Class of the assigned ground truth, else -1, int64, shape (P,).
        feats: Feature maps of the image, each (1, D, H, W).
    """

    proposals: Tensor
    assigned: Tensor
    labels: Tensor
    feats: tuple[Tensor, ...]


@contextmanager
def watch_sampler(roi_head: nn.Module, seeds: Sequence[int]) -> Iterator[list[SeenImage]]:
    """Seeds a RoI head's sampler anew for each image, and notes what it is given.

    The mask branch is set aside meanwhile: it has no part in classification, and its loss would
    need masks. Head and sampler are as before on leaving, also after an error.

    Args:
        roi_head: mmdet's ``StandardRoIHead``.
        seeds: One for each image of the batch.

    Returns:
        A context manager; its list gets one entry for each image.
    """
    sampler = roi_head.bbox_sampler
    mask_head = getattr(roi_head, 'mask_head', None)
    watcher = _WatchedSampler(sampler, seeds)
    roi_head.bbox_sampler = watcher
    if mask_head is not None:
        roi_head.mask_head = None
    try:
        yield watcher.seen
    finally:
        roi_head.bbox_sampler = sampler
        if mask_head is not None:
            roi_head.mask_head = mask_head


def classify_proposals(
    detector: nn.Module, seen: Sequence[SeenImage], activation: Activation
) -> ClassifierSamples:
    """Samples of every proposal that the assigner does not ignore."""
    parts = []
    for image in seen:
        keep = image.assigned >= 0
        rois = bbox2roi([image.proposals[keep]])
        logits = detector.roi_head._bbox_forward(image.feats, rois)['cls_score']
        labels = _with_background(detector, image.assigned[keep], image.labels[keep])
        parts.append((logits, labels, rois))
    return _join(parts, activation)


def classify_detections(
    detector: nn.Module, seen: Sequence[SeenImage], data_samples: SampleList, activation: Activation
) -> ClassifierSamples:
    """Samples of the RoIs behind the boxes that are left after NMS with the test settings.

    A box that a RoI became by regression decides the label. A RoI whose boxes are kept for two
    classes is there twice.
    """
    return _join(
        [
            _detect(detector, image.feats, data_sample)
            for image, data_sample in zip(seen, data_samples)
        ],
        activation,
    )


def _detect(
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


def _join(
    parts: Sequence[tuple[Tensor, Tensor, Tensor]], activation: Activation
) -> ClassifierSamples:
    for index, (_, _, rois) in enumerate(parts):
        rois[:, 0] = index
    logits, labels, rois = (torch.cat(values) for values in zip(*parts))
    return ClassifierSamples(
        logits=logits,
        labels=labels,
        weights=logits.new_ones(len(labels)),
        locations=rois,
        activation=activation,
    )


class _WatchedSampler:
    def __init__(self, sampler: BaseSampler, seeds: Sequence[int]) -> None:
        self.sampler = sampler
        self.seeds = seeds
        self.seen: list[SeenImage] = []

    def sample(
        self,
        assign_result: AssignResult,
        pred_instances: InstanceData,
        gt_instances: InstanceData,
        feats: Sequence[Tensor],
    ) -> SamplingResult:
        seed = self.seeds[len(self.seen)]
        image = SeenImage(
            pred_instances.priors, assign_result.gt_inds, assign_result.labels, tuple(feats)
        )
        self.seen.append(image)
        torch.manual_seed(seed)
        return self.sampler.sample(assign_result, pred_instances, gt_instances, feats=feats)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sampler, name)
