"""Tap of cascades: the sampled RoIs and the box head's logits of each stage."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import ClassVar

import torch
from mmdet.models.layers import adaptive_avg_pool2d
from mmdet.models.roi_heads import CascadeRoIHead, HybridTaskCascadeRoIHead, SCNetRoIHead
from mmdet.structures import SampleList
from mmengine.structures import PixelData
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
from calkd_det.taps.roi_samples import watch_sampler

BUILT_IN = (CascadeRoIHead, HybridTaskCascadeRoIHead, SCNetRoIHead)


class CascadeRoIHeadTap(Tap):
    """Tap of mmdet's ``CascadeRoIHead`` and similar heads, with one classifier for each stage.

    The classifiers are named ``s0``, ``s1``, ..., as in mmdet's names of losses. Each classifies
    the RoIs of its stage, which the student's earlier stages have refined.
    """

    built_in = BUILT_IN
    set_descriptions: ClassVar[Mapping[str, str]] = {
        'distillation': (
            'The RoIs that distillation sees, those of all stages: proposals, refined from stage '
            'to stage, and ground truth, sampled as in training'
        ),
        **{f's{stage}': f'The RoIs of stage {stage}' for stage in range(10)},
    }

    def __init__(self) -> None:
        self.roi_heads = list(self.built_in)

    @property
    def known_heads(self) -> Collection[type[nn.Module]]:
        return self.roi_heads

    @property
    def head_names(self) -> str:
        names = ', '.join(cls.__name__ for cls in self.roi_heads)
        return f'a {names} with plain softmax classifiers'

    def supports(self, detector: nn.Module) -> bool:
        roi_head = getattr(detector, 'roi_head', None)
        # The exact class only, because a subclass may run its box heads in another way.
        return (
            type(roi_head) in self.roi_heads
            and roi_head.with_bbox
            and all(is_readable(head) for head in roi_head.bbox_head)
            and len({head.num_classes for head in roi_head.bbox_head}) == 1
        )

    def is_tried(self, detector: nn.Module) -> bool:
        roi_head = detector.roi_head
        return type(roi_head) in self.built_in and all(map(is_of_mmdet, roi_head.bbox_head))

    def num_classes(self, detector: nn.Module) -> int:
        return detector.roi_head.bbox_head[0].num_classes

    def activation(self, detector: nn.Module) -> Activation:
        return ACTIVATION

    def classifiers(self, detector: nn.Module) -> tuple[str, ...]:
        return tuple(f's{stage}' for stage in range(detector.roi_head.num_stages))

    def geometry(self, detector: nn.Module) -> Geometry:
        return ROIS

    def kinds(self, detector: nn.Module) -> frozenset[Kind]:
        heads = detector.roi_head.bbox_head
        return CLASS_AND_BOX if all(map(has_readable_boxes, heads)) else CLASS

    @contextmanager
    def record(
        self,
        detector: nn.Module,
        kinds: frozenset[Kind] = CLASS,
        data_samples: SampleList = (),
    ) -> Iterator[list[HeadSamples]]:
        roi_head = detector.roi_head
        samples: list[HeadSamples] = []
        with ExitStack() as stack:
            records = [
                stack.enter_context(watch_box_head(extractor, head, kinds))
                for extractor, head in zip(roi_head.bbox_roi_extractor, roi_head.bbox_head)
            ]
            yield samples
        for name, record, factor in zip(
            self.classifiers(detector), records, roi_head.stage_loss_weights
        ):
            # mmdet ends the cascade at a stage without RoIs.
            if record.ran or not samples:
                samples.append(record.samples(name, float(factor)))

    def keep(self, detector: nn.Module, kinds: frozenset[Kind] = CLASS) -> None:
        roi_head = detector.roi_head
        names = {'bbox_roi_extractor', 'bbox_head'}
        if _fuses_semantics(roi_head):
            names |= {'semantic_roi_extractor', 'semantic_head'}
            roi_head.semantic_head.conv_logits = nn.Identity()
        if _fuses_context(roi_head):
            names.add('glbctx_head')
            roi_head.glbctx_head.fc = nn.Identity()
        detector.rpn_head = None
        keep_children(roi_head, names)
        if 'box' not in kinds:
            for head in roi_head.bbox_head:
                drop_regression(head)

    def prepare(self, detector: nn.Module, feats: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        roi_head = detector.roi_head
        shared = []
        if _fuses_semantics(roi_head):
            shared.append(roi_head.semantic_head(feats)[1])
        if _fuses_context(roi_head):
            shared.append(roi_head.glbctx_head(feats)[1])
        return (*feats, *shared)

    def answer(
        self, detector: nn.Module, feats: tuple[Tensor, ...], samples: HeadSamples
    ) -> HeadAnswer:
        roi_head, rois = detector.roi_head, samples.locations
        stage = self.classifiers(detector).index(samples.name)
        roi_feats = roi_features(roi_head.bbox_roi_extractor[stage], feats, rois)
        *feats, context = feats if _fuses_context(roi_head) else (*feats, None)
        if _fuses_semantics(roi_head):
            semantic = roi_features(roi_head.semantic_roi_extractor, feats[-1:], rois)
            if semantic.shape[-2:] != roi_feats.shape[-2:]:
                semantic = adaptive_avg_pool2d(semantic, roi_feats.shape[-2:])
            roi_feats = roi_feats + semantic
        if context is not None:
            roi_feats = roi_feats + context[rois[:, 0].long()]
        return answer_of_head(roi_head.bbox_head[stage], roi_feats, samples)

    def example(
        self, detector: nn.Module, kinds: frozenset[Kind] = CLASS
    ) -> tuple[tuple[Tensor, ...], Sequence[HeadSamples]]:
        roi_head = detector.roi_head
        num_levels = getattr(getattr(roi_head, 'semantic_head', None), 'num_ins', 0)
        feats, rois = example_inputs(roi_head.bbox_roi_extractor[0], num_levels)
        shared = {}
        if _fuses_semantics(roi_head):
            shared['semantic_feat'] = roi_head.semantic_head(feats)[1]
        if _fuses_context(roi_head):
            shared['glbctx_feat'] = roi_head.glbctx_head(feats)[1]
        samples = []
        for stage, name in enumerate(self.classifiers(detector)):
            results = roi_head._bbox_forward(stage, feats, rois, **shared)
            head = roi_head.bbox_head[stage]
            samples.append(example_samples(head, results, rois, kinds, name))
        return feats, samples

    @torch.no_grad()
    def sample_sets(
        self, detector: nn.Module, images: Tensor, data_samples: SampleList, seeds: Sequence[int]
    ) -> dict[str, HeadSamples]:
        """See :meth:`Tap.sample_sets`.

        ``distillation``: the RoIs of all stages, because one temperature applies to all of them.
        ``s0``, ``s1``, ...: the RoIs of each stage. There is no set of detections. mmdet scores a
        box by the mean of the stages' logits, and the stages were trained with different IoU
        thresholds for the foreground.
        """
        if getattr(detector.roi_head, 'semantic_head', None) is not None:
            # mmdet requires a segmentation. The semantic loss is switched off and does not use it.
            segmentation = PixelData(sem_seg=images.new_zeros(1, 1, 1, dtype=torch.long))
            data_samples = [sample.new() for sample in data_samples]
            for sample in data_samples:
                sample.gt_sem_seg = segmentation
        with watch_sampler(detector.roi_head, seeds), self.record(detector) as samples:
            detector.loss(images, data_samples)
        return {'distillation': _concatenate(samples), **{group.name: group for group in samples}}


def _fuses_semantics(roi_head: nn.Module) -> bool:
    return getattr(roi_head, 'semantic_head', None) is not None and 'bbox' in getattr(
        roi_head, 'semantic_fusion', ('bbox',)
    )


def _fuses_context(roi_head: nn.Module) -> bool:
    return getattr(roi_head, 'glbctx_head', None) is not None


def _concatenate(samples: Sequence[HeadSamples]) -> HeadSamples:
    columns = ('logits', 'labels', 'weights', 'locations')
    return HeadSamples(
        **{name: torch.cat([getattr(group, name) for group in samples]) for name in columns},
        activation=ACTIVATION,
    )
