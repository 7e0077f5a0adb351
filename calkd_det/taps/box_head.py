"""Box heads of two-stage detectors: record their samples, and run their classifier alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from mmdet.models.roi_heads.bbox_heads import (
    BBoxHead,
    DIIHead,
    DoubleConvFCBBoxHead,
    MultiInstanceBBoxHead,
    SABLHead,
)
from mmdet.structures.bbox import get_box_tensor
from torch import Tensor, nn

from calkd_det.knowledge import Activation, BoxPredictions, HeadAnswer, HeadSamples, Kind
from calkd_det.taps.random_features import random_features, random_rois

# mmdet turns the C + 1 logits of every readable head into scores by a softmax.
ACTIVATION: Activation = 'softmax'

_REGRESSION = ('fc_reg', 'reg_', 'upsample_', 'res_block', 'conv_branch', 'loss_bbox')


class BoxHeadRecord:
    """Record of a box head's RoIs, logits, labels and weights in one step.

    Where the head runs several times, the last run is kept, because the loss is computed from it.
    OHEM, for instance, runs the head on every proposal before it samples.

    Args:
        head: The box head.
        with_boxes: Whether its boxes are recorded, too.
    """

    def __init__(self, head: nn.Module, with_boxes: bool) -> None:
        self._head = head
        self._with_boxes = with_boxes
        self._deltas: Tensor | None = None
        self._extracted: Tensor | None = None
        self._rois: Tensor | None = None
        self._logits: Tensor | None = None
        self._labels: Tensor | None = None
        self._weights: Tensor | None = None
        self._avg_factor: float | None = None

    @property
    def ran(self) -> bool:
        """Whether the head ran."""
        return self._logits is not None

    def on_rois(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._extracted = args[1] if len(args) > 1 else kwargs['rois']

    def on_logits(self, module: nn.Module, args: tuple, output: tuple[Tensor, ...]) -> None:
        # A mask branch may share the extractor, and uses it after the box head has run.
        self._rois, self._logits = self._extracted, output[0]
        self._deltas = output[1] if self._with_boxes else None
        self._labels = self._weights = self._avg_factor = None

    def on_targets(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        # PISA first calls loss_cls without weights, on the foreground. Only the last call is kept.
        self._logits, self._labels, self._weights = (*args, None)[:3]
        self._avg_factor = kwargs.get('avg_factor')

    def samples(self, name: str = '', factor: float = 1.0) -> HeadSamples:
        """Return the recorded samples.

        Args:
            name: The name of the classifier.
            factor: The head's factor on the loss of the classifier.

        Raises:
            RuntimeError: The head did not run.
        """
        if self._logits is None:
            raise RuntimeError('the box head did not run while its loss was computed')
        labels, weights = self._labels, self._weights
        if labels is None:  # mmdet does not call loss_cls where there is no RoI
            labels = self._logits.new_zeros(0, dtype=int)
            weights = self._logits.new_zeros(0)
        samples = HeadSamples(
            logits=self._logits,
            labels=labels,
            weights=weights,
            locations=self._rois,
            activation=ACTIVATION,
            name=name,
            factor=factor,
            avg_factor=self._avg_factor,
        )
        if self._deltas is None:
            return samples
        index = samples.foreground()
        return replace(samples, boxes=read_boxes(self._head, self._deltas[index], samples, index))


@contextmanager
def watch_box_head(
    extractor: nn.Module, head: nn.Module, kinds: frozenset[Kind]
) -> Iterator[BoxHeadRecord]:
    """Record a box head's runs by hooks on its RoI extractor, the head and its ``loss_cls``.

    Args:
        extractor: The RoI extractor of the head.
        head: The box head.
        kinds: What to record.
    """
    record = BoxHeadRecord(head, with_boxes='box' in kinds)
    with ExitStack() as hooks:
        for handle in (
            extractor.register_forward_pre_hook(record.on_rois, with_kwargs=True),
            head.register_forward_hook(record.on_logits),
            head.loss_cls.register_forward_pre_hook(record.on_targets, with_kwargs=True),
        ):
            hooks.callback(handle.remove)
        yield record


def is_readable(head: nn.Module) -> bool:
    """Return whether a box head classifies by one softmax over C + 1 logits."""
    return (
        isinstance(head, (BBoxHead, SABLHead))
        and not isinstance(head, (DIIHead, MultiInstanceBBoxHead))
        and getattr(head, 'with_cls', True)  # SABL's head has no such switch
        and not getattr(head.loss_cls, 'use_sigmoid', False)
        and not getattr(head.loss_cls, 'custom_cls_channels', False)
        and not getattr(head.loss_cls, 'custom_activation', False)
    )


def has_readable_boxes(head: nn.Module) -> bool:
    """Return whether a readable box head predicts boxes by deltas that its coder decodes."""
    return getattr(head, 'with_reg', False) and not isinstance(head, SABLHead)


def read_boxes(
    head: nn.Module, deltas: Tensor, samples: HeadSamples, index: Tensor
) -> BoxPredictions:
    """Decode the boxes of some samples for their assigned classes, in float32.

    Args:
        head: A head for which :func:`has_readable_boxes` is true.
        deltas: What its regression branch gives for these, float, shape (M, C * 4), or (M, 4) of
            a class-agnostic head.
        samples: All N samples; labels are those of the head's classes.
        index: Which of them, int64, shape (M,).

    Returns:
        The predictions, with the graph of ``deltas``.
    """
    coder = head.bbox_coder
    with torch.autocast(deltas.device.type, enabled=False):
        deltas = deltas.float()
        if not head.reg_class_agnostic:
            # The number of columns is given, because -1 is ambiguous where there is no row.
            of_classes = deltas.view(
                len(deltas), head.num_classes, deltas.shape[1] // head.num_classes
            )
            deltas = of_classes[
                torch.arange(len(index), device=index.device), samples.labels[index]
            ]
        boxes = get_box_tensor(coder.decode(samples.locations[index, 1:].float(), deltas))
    numbers = [getattr(coder, name, None) for name in ('means', 'stds')]
    known = None not in numbers
    return BoxPredictions(
        rows=index,
        boxes=boxes,
        deltas=deltas,
        coder=(type(coder).__name__, *map(tuple, numbers)) if known else None,
    )


def answer_of_head(
    head: nn.Module, roi_feats: Tensor, samples: HeadSamples, box_feats: Tensor | None = None
) -> HeadAnswer:
    """Compute class logits, and the boxes of the samples that have some.

    Args:
        head: A readable head, after :func:`drop_regression` where no sample has boxes.
        roi_feats: RoI features of the N samples, float, shape (N, D, H, W).
        samples: The samples.
        box_feats: RoI features of the M samples with boxes for the regression branch, where it
            has features of its own.
    """
    if samples.boxes is None:
        return HeadAnswer(class_logits(head, roi_feats))
    index = samples.boxes.rows
    if isinstance(head, DoubleConvFCBBoxHead):
        logits, deltas = class_logits(head, roi_feats), _double_head_deltas(head, box_feats)
    else:
        logits, deltas = head(roi_feats)
        deltas = deltas[index]
    return HeadAnswer(logits, read_boxes(head, deltas, samples, index))


def _double_head_deltas(head: DoubleConvFCBBoxHead, box_feats: Tensor) -> Tensor:
    if not len(box_feats):  # which torch's average pooling does not take
        return box_feats.new_zeros(0, head.fc_reg.out_features)
    x = head.res_block(box_feats)
    for conv in head.conv_branch:
        x = conv(x)
    return head.fc_reg(head.avg_pool(x).flatten(1))


def roi_features(
    extractor: nn.Module, feats: Sequence[Tensor], rois: Tensor, scale: float | None = None
) -> Tensor:
    """Extract RoI features in the precision of the RoIs.

    mmcv's RoIAlign does not take bfloat16, and reads channels_last features wrongly without an
    error.

    Args:
        extractor: A RoI extractor of mmdet.
        feats: Feature maps, each (B, D, h, w), of any float dtype. The first ``num_inputs`` are
            used.
        rois: Float, shape (N, 5).
        scale: Factor on width and height of the RoIs; None for 1.

    Returns:
        RoI features of the dtype of ``rois``, shape (N, D, H, W).
    """
    maps = tuple(feat.to(rois.dtype).contiguous() for feat in feats[: extractor.num_inputs])
    if scale is None:
        return extractor(maps, rois)
    return extractor(maps, rois, roi_scale_factor=scale)


def is_of_mmdet(head: nn.Module) -> bool:
    """Return whether a box head's class is one of mmdet, not one that a user derived."""
    return type(head).__module__.startswith('mmdet.models.')


def example_inputs(extractor: nn.Module, num_levels: int = 0) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return random features of two images of 128 x 128 pixels, and RoIs within them.

    Args:
        extractor: A RoI extractor of mmdet.
        num_levels: The least number of levels, for a part of the RoI head other than the extractor.

    Returns:
        Features, each (2, D, H, W), and RoIs, float, shape (16, 5).
    """
    sizes = [128 // stride for stride in extractor.featmap_strides]
    while len(sizes) < num_levels:
        sizes.append(max(1, sizes[-1] // 2))
    feats = random_features([(size, size) for size in sizes], extractor.out_channels)
    return feats, random_rois(128, count=16)


def example_samples(
    head: nn.Module, results: Mapping[str, Tensor], rois: Tensor, kinds: frozenset[Kind], name: str
) -> HeadSamples:
    """Return samples of RoIs with what a RoI head computes for them.

    Args:
        head: The box head.
        results: The RoI head's class logits and deltas.
        rois: Float, shape (N, 5).
        kinds: Whether boxes are given as well; they are decoded by the head itself.
        name: The name of the classifier.
    """
    logits = results['cls_score']
    samples = HeadSamples(
        logits=logits,
        labels=torch.arange(len(rois)) % (logits.shape[1] - 1),
        weights=torch.ones(len(rois)),
        locations=rois,
        activation=ACTIVATION,
        name=name,
    )
    if 'box' not in kinds:
        return samples
    meta = dict(img_shape=(2**20, 2**20), ori_shape=(2**20, 2**20), scale_factor=(1.0, 1.0))
    (image,) = head.predict_by_feat(
        (rois,), (logits,), (results['bbox_pred'],), [meta], rescale=False
    )
    boxes = image.bboxes.view(len(rois), -1, 4)
    columns = samples.labels if boxes.shape[1] > 1 else torch.zeros_like(samples.labels)
    index = torch.arange(len(rois))
    return replace(samples, boxes=BoxPredictions(index, boxes[index, columns]))


def class_logits(head: nn.Module, roi_feats: Tensor) -> Tensor:
    """Compute the class logits of a box head.

    A regression branch of its own is not run.

    Args:
        head: A head for which :func:`is_readable` is true, whole or after
            :func:`drop_regression`.
        roi_feats: Float, shape (N, D, H, W).

    Returns:
        Logits, shape (N, C + 1).
    """
    if isinstance(head, SABLHead):
        return _classify(roi_feats, head.cls_fcs, head)
    if isinstance(head, DoubleConvFCBBoxHead):
        return _classify(roi_feats, head.fc_branch, head)
    return head(roi_feats)[0]


def drop_regression(head: nn.Module) -> None:
    """Remove, in place, every part of a box head that :func:`class_logits` does not run."""
    head.with_reg = False
    for name, child in list(head.named_children()):
        if name.startswith(_REGRESSION):
            setattr(head, name, nn.ModuleList() if isinstance(child, nn.ModuleList) else None)


def _classify(roi_feats: Tensor, fcs: nn.ModuleList, head: nn.Module) -> Tensor:
    x = roi_feats.flatten(1)
    for fc in fcs:
        x = head.relu(fc(x))
    return head.fc_cls(x)
