"""The tap of two-stage detectors: sampled RoIs and the logits of the box head's classifier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.structures import SampleList
from torch import Tensor, nn

from calkd_det.taps.base import Tap
from calkd_det.taps.roi_sets import classify_detections, classify_proposals, watch_sampler
from calkd_det.taps.samples import Activation, ClassifierSamples


class RoIHeadTap(Tap):
    """Taps mmdet's ``StandardRoIHead`` by forward hooks on three of its modules.

    The RoI extractor is given the RoIs, the box head returns the logits, ``loss_cls`` is given
    labels and weights. Where the head runs several times in a step (OHEM looks at every proposal
    before it samples), the last run is the one that makes the loss.
    """

    heads = 'a StandardRoIHead with a BBoxHead and a plain classifier'

    def supports(self, detector: nn.Module) -> bool:
        roi_head = getattr(detector, 'roi_head', None)
        # The exact class: a subclass may forward its box head in other ways.
        return (
            type(roi_head) is StandardRoIHead
            and roi_head.with_bbox
            and isinstance(roi_head.bbox_head, BBoxHead)
            and roi_head.bbox_head.with_cls
            and not roi_head.bbox_head.custom_cls_channels
        )

    def num_classes(self, detector: nn.Module) -> int:
        return detector.roi_head.bbox_head.num_classes

    def activation(self, detector: nn.Module) -> Activation:
        use_sigmoid = getattr(detector.roi_head.bbox_head.loss_cls, 'use_sigmoid', False)
        return 'sigmoid' if use_sigmoid else 'softmax'

    def sampled(self, detector: nn.Module) -> str:
        return 'RoIs'

    @contextmanager
    def record(self, detector: nn.Module) -> Iterator[list[ClassifierSamples]]:
        roi_head = detector.roi_head
        record = _Record()
        samples: list[ClassifierSamples] = []
        with ExitStack() as hooks:
            for handle in (
                roi_head.bbox_roi_extractor.register_forward_pre_hook(
                    record.see_rois, with_kwargs=True
                ),
                roi_head.bbox_head.register_forward_hook(record.see_logits),
                roi_head.bbox_head.loss_cls.register_forward_pre_hook(
                    record.see_targets, with_kwargs=True
                ),
            ):
                hooks.callback(handle.remove)
            yield samples
        samples.append(record.samples(self.activation(detector)))

    def keep_classifier(self, detector: nn.Module) -> None:
        roi_head = detector.roi_head
        detector.rpn_head = None
        roi_head.mask_roi_extractor = roi_head.mask_head = None
        head = roi_head.bbox_head
        head.with_reg = False
        head.fc_reg = None
        for branch in ('reg_convs', 'reg_fcs'):
            if hasattr(head, branch):
                setattr(head, branch, nn.ModuleList())

    def classify(
        self, detector: nn.Module, feats: tuple[Tensor, ...], samples: ClassifierSamples
    ) -> Tensor:
        return detector.roi_head._bbox_forward(feats, samples.locations)['cls_score']

    @torch.no_grad()
    def sample_sets(
        self, detector: nn.Module, images: Tensor, data_samples: SampleList, seeds: Sequence[int]
    ) -> dict[str, ClassifierSamples]:
        """See :meth:`Tap.sample_sets`.

        ``distillation``: the RoIs that the head samples for its loss. ``proposals``: every
        proposal of the training's RPN settings, without the ground truth, labelled by the head's
        assigner, those it ignores left out. ``detections``: the boxes after NMS with the test
        settings, with all logits of the RoI that each came from, labelled by the same assigner.
        """
        with watch_sampler(detector.roi_head, seeds) as seen, self.record(detector) as samples:
            detector.loss(images, data_samples)
        activation = self.activation(detector)
        return {
            'distillation': samples[0],
            'proposals': classify_proposals(detector, seen, activation),
            'detections': classify_detections(detector, seen, data_samples, activation),
        }


@dataclass
class _Record:
    rois: Tensor | None = None
    logits: Tensor | None = None
    labels: Tensor | None = None
    weights: Tensor | None = None

    def see_rois(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.rois = args[1] if len(args) > 1 else kwargs['rois']
        self.labels = self.weights = None

    def see_logits(self, module: nn.Module, args: tuple, output: tuple[Tensor, Tensor]) -> None:
        self.logits = output[0]

    def see_targets(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.logits, self.labels, self.weights = args[:3]

    def samples(self, activation: Activation) -> ClassifierSamples:
        if self.logits is None:
            raise RuntimeError('the box head did not run while its loss was computed')
        labels, weights = self.labels, self.weights
        if labels is None:  # mmdet does not call loss_cls where there is no RoI
            labels = self.logits.new_zeros(0, dtype=int)
            weights = self.logits.new_zeros(0)
        return ClassifierSamples(
            logits=self.logits,
            labels=labels,
            weights=weights,
            locations=self.rois,
            activation=activation,
        )
