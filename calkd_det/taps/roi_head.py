"""Tap of two-stage detectors: sampled RoIs and the logits of the box head's classifier."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from mmdet.models.roi_heads import (
    DoubleHeadRoIHead,
    DynamicRoIHead,
    GridRoIHead,
    MaskScoringRoIHead,
    PISARoIHead,
    PointRendRoIHead,
    StandardRoIHead,
)
from mmdet.structures import SampleList
from torch import Tensor, nn

from calkd_det.knowledge import Activation, HeadAnswer, HeadSamples, Kind
from calkd_det.taps.base import CLASS, CLASS_AND_BOX, Tap, keep_children
from calkd_det.taps.box_head import (
    ACTIVATION,
    answer_of_head,
    drop_regression,
    example_inputs,
    example_samples,
    has_readable_boxes,
    is_of_mmdet,
    is_readable,
    roi_features,
    watch_box_head,
)
from calkd_det.taps.geometry import ROIS, Geometry
from calkd_det.taps.roi_samples import classify_detections, classify_proposals, watch_sampler

BUILT_IN = (
    StandardRoIHead,
    DoubleHeadRoIHead,
    DynamicRoIHead,
    GridRoIHead,
    MaskScoringRoIHead,
    PISARoIHead,
    PointRendRoIHead,
)


class RoIHeadTap(Tap):
    """Tap of mmdet's ``StandardRoIHead`` and similar heads, by forward hooks on three modules.

    The RoI extractor gets the RoIs. The box head returns the logits. ``loss_cls`` gets labels and
    weights.
    """

    built_in = BUILT_IN
    set_descriptions: ClassVar[Mapping[str, str]] = {
        'distillation': (
            'The RoIs that distillation sees: proposals and ground truth, sampled as in training'
        ),
        'proposals': (
            'Every proposal of the RPN with the training settings, without the ground truth'
        ),
        'detections': (
            'The boxes after NMS with the test settings, each with the logits of its RoI'
        ),
    }

    def __init__(self) -> None:
        self.roi_heads = list(self.built_in)

    @property
    def known_heads(self) -> Collection[type[nn.Module]]:
        return self.roi_heads

    @property
    def head_names(self) -> str:
        names = ', '.join(cls.__name__ for cls in self.roi_heads)
        return f'a {names} with a plain softmax classifier'

    def supports(self, detector: nn.Module) -> bool:
        roi_head = getattr(detector, 'roi_head', None)
        # The exact class only, because a subclass may run its box head in another way.
        return (
            type(roi_head) in self.roi_heads
            and roi_head.with_bbox
            and is_readable(roi_head.bbox_head)
        )

    def is_tried(self, detector: nn.Module) -> bool:
        roi_head = detector.roi_head
        return type(roi_head) in self.built_in and is_of_mmdet(roi_head.bbox_head)

    def num_classes(self, detector: nn.Module) -> int:
        return detector.roi_head.bbox_head.num_classes

    def activation(self, detector: nn.Module) -> Activation:
        return ACTIVATION

    def geometry(self, detector: nn.Module) -> Geometry:
        return ROIS

    def kinds(self, detector: nn.Module) -> frozenset[Kind]:
        return CLASS_AND_BOX if has_readable_boxes(detector.roi_head.bbox_head) else CLASS

    @contextmanager
    def record(
        self,
        detector: nn.Module,
        kinds: frozenset[Kind] = CLASS,
        data_samples: SampleList = (),
    ) -> Iterator[list[HeadSamples]]:
        roi_head = detector.roi_head
        samples: list[HeadSamples] = []
        with watch_box_head(roi_head.bbox_roi_extractor, roi_head.bbox_head, kinds) as record:
            yield samples
        samples.append(record.samples())

    def keep(self, detector: nn.Module, kinds: frozenset[Kind] = CLASS) -> None:
        detector.rpn_head = None
        keep_children(detector.roi_head, ('bbox_roi_extractor', 'bbox_head', 'shared_head'))
        if 'box' not in kinds:
            drop_regression(detector.roi_head.bbox_head)

    def answer(
        self, detector: nn.Module, feats: tuple[Tensor, ...], samples: HeadSamples
    ) -> HeadAnswer:
        roi_head = detector.roi_head
        roi_feats = _roi_features(roi_head, feats, samples.locations)
        box_feats = None
        if samples.boxes is not None and isinstance(roi_head, DoubleHeadRoIHead):
            rois = samples.locations[samples.boxes.rows]
            box_feats = _roi_features(roi_head, feats, rois, roi_head.reg_roi_scale_factor)
        return answer_of_head(roi_head.bbox_head, roi_feats, samples, box_feats)

    def example(
        self, detector: nn.Module, kinds: frozenset[Kind] = CLASS
    ) -> tuple[tuple[Tensor, ...], Sequence[HeadSamples]]:
        roi_head = detector.roi_head
        feats, rois = example_inputs(roi_head.bbox_roi_extractor)
        results = roi_head._bbox_forward(feats, rois)
        return feats, [example_samples(roi_head.bbox_head, results, rois, kinds, name='')]

    @torch.no_grad()
    def sample_sets(
        self, detector: nn.Module, images: Tensor, data_samples: SampleList, seeds: Sequence[int]
    ) -> dict[str, HeadSamples]:
        """See :meth:`Tap.sample_sets`.

        ``distillation``: the RoIs that the head samples for its loss. ``proposals``: every
        proposal of the training's RPN settings, without the ground truth, labelled by the head's
        assigner. Proposals that it ignores are left out. ``detections``: the boxes after NMS with
        the test settings, each with all logits of its RoI, labelled by the same assigner. A Grid
        R-CNN has no such set, because its boxes do not come from the box head.
        """
        with (
            watch_sampler(detector.roi_head, seeds) as sampled_images,
            self.record(detector) as samples,
        ):
            detector.loss(images, data_samples)
        groups = {
            'distillation': samples[0],
            'proposals': classify_proposals(detector, sampled_images, ACTIVATION),
        }
        if not isinstance(detector.roi_head, GridRoIHead):
            groups['detections'] = classify_detections(
                detector, sampled_images, data_samples, ACTIVATION
            )
        return groups


def _roi_features(
    roi_head: nn.Module, feats: tuple[Tensor, ...], rois: Tensor, scale: float | None = None
) -> Tensor:
    """Return the features that a box head reads, see :func:`box_head.roi_features`."""
    roi_feats = roi_features(roi_head.bbox_roi_extractor, feats, rois, scale)
    return roi_head.shared_head(roi_feats) if roi_head.with_shared_head else roi_feats
