"""Tap of single-stage detectors, which classify every location of every level by sigmoids."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar
from weakref import WeakSet

import torch
from mmdet.models.dense_heads import (
    ATSSHead,
    DDODHead,
    FCOSHead,
    FoveaHead,
    GFLHead,
    NASFCOSHead,
    RetinaHead,
    RetinaSepBNHead,
    RTMDetHead,
    RTMDetInsHead,
    RTMDetInsSepBNHead,
    RTMDetSepBNHead,
    SABLRetinaHead,
)
from mmdet.models.dense_heads.condinst_head import CondInstBboxHead
from mmdet.models.task_modules import MlvlPointGenerator
from mmdet.structures import SampleList
from mmdet.utils import reduce_mean
from torch import Tensor, nn

from calkd_det.errors import ConfigError
from calkd_det.knowledge import Activation, BoxPredictions, HeadAnswer, HeadSamples, Kind
from calkd_det.taps.base import BEFORE_HEADS, CLASS, CLASS_AND_BOX, Tap, keep_children
from calkd_det.taps.dense_boxes import (
    distribution_bins,
    drop_other_parts,
    has_readable_boxes,
    predicted_boxes,
    read_boxes,
    rows,
)
from calkd_det.taps.dense_samples import NUM_DRAWN, NUM_HARDEST, share_of_background
from calkd_det.taps.feature_maps import crop
from calkd_det.taps.geometry import Geometry
from calkd_det.taps.random_features import random_features
from calkd_det.taps.rtmdet_ins import without_mask_loss


@dataclass(frozen=True)
class Branch:
    """The classification branch of a head.

    Attributes:
        convs: Attribute with the convolutions before the classifier: a list of them, or one such
            list for each level.
        classifier: Attribute with the classifier: a layer, or a list with one for each level.
    """

    convs: str
    classifier: str


# Heads whose samples are anchor boxes, even where each location has only one.
ANCHOR_HEADS = (RetinaHead, RetinaSepBNHead)


class DenseHeadTap(Tap):
    """Tap of mmdet's dense heads, by forward hooks on the head and its ``loss_cls``.

    The head returns the logits as maps, whose sizes are recorded. ``loss_cls`` gets the logits
    with one row for each sample, and labels and weights, level by level or all at once. Samples
    are in mmdet's order: level, image, row, column, anchor. Their ``locations`` are the sizes of
    the maps, int64, on the CPU, shape (L, 2), height first. Another detector of the same strides
    answers with the top left part of this size of its own maps.
    """

    built_in: ClassVar[dict[type[nn.Module], Branch]] = {
        RetinaHead: Branch('cls_convs', 'retina_cls'),
        RetinaSepBNHead: Branch('cls_convs', 'retina_cls'),
        SABLRetinaHead: Branch('cls_convs', 'retina_cls'),
        FCOSHead: Branch('cls_convs', 'conv_cls'),
        ATSSHead: Branch('cls_convs', 'atss_cls'),
        GFLHead: Branch('cls_convs', 'gfl_cls'),
        RTMDetHead: Branch('cls_convs', 'rtm_cls'),
        RTMDetSepBNHead: Branch('cls_convs', 'rtm_cls'),
        RTMDetInsHead: Branch('cls_convs', 'rtm_cls'),
        RTMDetInsSepBNHead: Branch('cls_convs', 'rtm_cls'),
        DDODHead: Branch('cls_convs', 'atss_cls'),
        FoveaHead: Branch('cls_convs', 'conv_cls'),
        CondInstBboxHead: Branch('cls_convs', 'conv_cls'),
        NASFCOSHead: Branch('cls_convs', 'conv_cls'),
    }
    question = 'the class'
    set_descriptions: ClassVar[dict[str, str]] = {
        'distillation': (
            "What the head's loss sees of every location: all of the foreground, of the background "
            f'of each image the {NUM_HARDEST} samples with the highest scores, and {NUM_DRAWN} '
            'drawn from the rest, each weighted to represent the rest'
        )
    }

    def __init__(self) -> None:
        self.branches = dict(self.built_in)
        self._checked_rows: WeakSet[nn.Module] = WeakSet()

    @property
    def known_heads(self) -> Collection[type[nn.Module]]:
        return self.branches.keys()

    @property
    def head_names(self) -> str:
        return f'a {", ".join(cls.__name__ for cls in self.branches)} with a sigmoid classifier'

    def supports(self, detector: nn.Module) -> bool:
        head = getattr(detector, 'bbox_head', None)
        # The exact class only, because a subclass may classify in another way.
        return (
            type(head) in self.branches
            and head.use_sigmoid_cls
            # With either of these the box branch takes part in the class scores.
            and not getattr(head, 'with_objectness', False)
            and not getattr(head, 'with_deform', False)
        )

    def is_tried(self, detector: nn.Module) -> bool:
        return type(detector.bbox_head) in self.built_in

    def num_classes(self, detector: nn.Module) -> int:
        return detector.bbox_head.num_classes

    def activation(self, detector: nn.Module) -> Activation:
        return 'sigmoid'

    def geometry(self, detector: nn.Module) -> Geometry:
        head = detector.bbox_head
        priors = _prior_generator(head)
        strides = tuple((float(width), float(height)) for width, height in priors.strides)
        if isinstance(priors, MlvlPointGenerator):
            points = tuple((priors.offset * w, priors.offset * h) for w, h in strides)
            return Geometry('locations', self.question, strides, points)
        anchors = tuple(
            tuple(tuple(box) for box in level.double().tolist()) for level in priors.base_anchors
        )
        if isinstance(head, ANCHOR_HEADS) or priors.num_base_priors[0] > 1:
            return Geometry('anchors', self.question, strides, anchors=anchors)
        points = tuple(((x1 + x2) / 2, (y1 + y2) / 2) for ((x1, y1, x2, y2),) in anchors)
        return Geometry('locations', self.question, strides, points)

    def kinds(self, detector: nn.Module) -> frozenset[Kind]:
        return CLASS_AND_BOX if has_readable_boxes(detector.bbox_head) else CLASS

    def distribution_bins(self, detector: nn.Module) -> int | None:
        return distribution_bins(detector.bbox_head)

    @contextmanager
    def record(
        self,
        detector: nn.Module,
        kinds: frozenset[Kind] = CLASS,
        data_samples: SampleList = (),
    ) -> Iterator[list[HeadSamples]]:
        head = detector.bbox_head
        record = DenseRecord(divides_by_metrics=isinstance(head, RTMDetHead))
        samples: list[HeadSamples] = []
        with ExitStack() as hooks:
            for handle in (
                head.register_forward_hook(record.on_maps),
                head.loss_cls.register_forward_pre_hook(record.on_targets, with_kwargs=True),
            ):
                hooks.callback(handle.remove)
            yield samples
        samples.append(record.samples())
        if 'box' in kinds:
            samples[0] = with_boxes(samples[0], head, record.outputs)
        if not self.is_tried(detector) and head not in self._checked_rows:
            record.check_rows(type(head).__name__, head.num_classes)
            self._checked_rows.add(head)

    def keep(self, detector: nn.Module, kinds: frozenset[Kind] = CLASS) -> None:
        keep_children(detector, (*BEFORE_HEADS, 'bbox_head'))
        head = detector.bbox_head
        if 'box' in kinds:
            drop_other_parts(head)
            return
        branch = self.branches[type(head)]
        for name, _ in list(head.named_children()):
            if name not in (branch.convs, branch.classifier):
                delattr(head, name)

    def answer(
        self, detector: nn.Module, feats: tuple[Tensor, ...], samples: HeadSamples
    ) -> HeadAnswer:
        head = detector.bbox_head
        if samples.boxes is not None:
            return _answer_of_whole_head(head, feats, samples)
        branch = self.branches[type(head)]
        convs, classifier = getattr(head, branch.convs), getattr(head, branch.classifier)
        convs_by_level = any(isinstance(part, (nn.ModuleList, nn.Sequential)) for part in convs)
        classifier_by_level = isinstance(classifier, nn.ModuleList)
        logits = []
        for level, (x, size) in enumerate(zip(feats, samples.locations.tolist())):
            for conv in convs[level] if convs_by_level else convs:
                x = conv(x)
            x = (classifier[level] if classifier_by_level else classifier)(x)
            logits.append(rows(crop(x, size), head.num_classes))
        return HeadAnswer(torch.cat(logits))

    def example(
        self, detector: nn.Module, kinds: frozenset[Kind] = CLASS
    ) -> tuple[tuple[Tensor, ...], Sequence[HeadSamples]]:
        head = detector.bbox_head
        strides = self.geometry(detector).strides
        # Deformable convolutions need maps of at least 3 x 3 cells.
        sizes = [(max(3, 8 >> level), max(4, 6 >> level)) for level in range(len(strides))]
        feats = random_features(sizes, head.in_channels)
        outputs = head(feats)
        logits = join([rows(maps, head.num_classes) for maps in outputs[0]])
        boxes = None
        if 'box' in kinds:
            boxes = BoxPredictions(torch.arange(len(logits)), predicted_boxes(head, outputs))
        return feats, [
            HeadSamples(
                logits=logits,
                labels=torch.full((len(logits),), head.num_classes),
                weights=torch.ones(len(logits)),
                locations=torch.tensor(sizes),
                activation='sigmoid',
                boxes=boxes,
            )
        ]

    @torch.no_grad()
    def sample_sets(
        self, detector: nn.Module, images: Tensor, data_samples: SampleList, seeds: Sequence[int]
    ) -> dict[str, HeadSamples]:
        """See :meth:`Tap.sample_sets`.

        ``distillation``: all of the foreground and a weighted share of the background, see
        :func:`~calkd_det.taps.dense_samples.share_of_background`; the columns of ``locations`` are
        the index of the image and of the sample within it. There is no set of detections: their
        scores contain centerness, quality or objectness, so they are not the classifier's.
        """
        head = detector.bbox_head
        with ExitStack() as stack:
            if isinstance(head, RTMDetInsHead):
                data_samples = stack.enter_context(without_mask_loss(head, data_samples))
            samples = stack.enter_context(self.record(detector))
            if getattr(detector, 'mask_head', None) is None:
                detector.loss(images, data_samples)
            else:  # whose loss needs masks
                head.loss(detector.extract_feat(images), data_samples)
        anchors = _prior_generator(head).num_base_priors[0]
        return {'distillation': share_of_background(samples[0], anchors, seeds)}


def with_boxes(
    samples: HeadSamples, head: nn.Module, outputs: Sequence[Sequence[Tensor]]
) -> HeadSamples:
    """Add the boxes of the foreground samples with a weight above zero.

    Args:
        samples: All samples of the head.
        head: A head whose boxes can be read.
        outputs: What its forward returned, by kind and level.
    """
    index = samples.foreground()
    return replace(samples, boxes=read_boxes(head, outputs, index))


def _answer_of_whole_head(
    head: nn.Module, feats: tuple[Tensor, ...], samples: HeadSamples
) -> HeadAnswer:
    """Return classes and boxes of one forward of a head."""
    sizes = samples.locations.tolist()
    # RTMDet-Ins returns no map by level as its last.
    outputs = [
        [crop(maps, size) for maps, size in zip(levels, sizes)] for levels in head(feats)[:3]
    ]
    logits = torch.cat([rows(maps, head.num_classes) for maps in outputs[0]])
    return HeadAnswer(logits, read_boxes(head, outputs, samples.boxes.rows))


def _prior_generator(head: nn.Module) -> nn.Module:
    """Return the generator of the boxes or points that a head classifies."""
    # SABL classifies squares, and labels them by the anchors around them.
    return getattr(head, 'square_anchor_generator', None) or head.prior_generator


@dataclass
class DenseRecord:
    """Record of a dense head's maps and of the arguments of its ``loss_cls`` in one step.

    Attributes:
        divides_by_metrics: Whether the head divides its loss by the sum of its assign metrics.
        outputs: What the head returned, by kind and level; class logits first, each
            (B, A * C, H, W).
        sizes: Height and width of each map.
        logits: Logits of each call of ``loss_cls``, each (n, C).
        labels: Labels of each call, int64, each (n,).
        weights: Weights of each call, float, each (n,).
        qualities: Target scores of the class of each call's samples, float, each (n,); empty where
            labels are all that the head is trained to.
        avg_factor: The divisor that ``loss_cls`` was given, None without one.
    """

    divides_by_metrics: bool
    outputs: Sequence[Sequence[Tensor]] = ()
    sizes: list[tuple[int, int]] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    qualities: list[Tensor] = field(default_factory=list)
    avg_factor: Tensor | float | None = None

    def on_maps(self, head: nn.Module, args: tuple, output: tuple) -> None:
        self.outputs = output
        self.sizes = [tuple(maps.shape[-2:]) for maps in output[0]]
        self.logits, self.labels, self.weights, self.qualities = [], [], [], []
        self.avg_factor = None

    def on_targets(self, loss: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        logits, target = args[:2]
        # Where the score includes the quality of the box, the target is a pair with that quality.
        labels, qualities = target if isinstance(target, tuple) else (target, None)
        if qualities is not None:
            self.qualities.append(qualities)
        weights = args[2] if len(args) > 2 else kwargs.get('weight')
        self.logits.append(logits)
        self.labels.append(labels)
        if weights is None:
            weights = labels.new_ones(len(labels), dtype=torch.float)
        self.weights.append(weights)
        # A head that computes its loss by level gives the same divisor for each level.
        self.avg_factor = args[3] if len(args) > 3 else kwargs.get('avg_factor')

    def samples(self) -> HeadSamples:
        """Return the recorded samples.

        Raises:
            RuntimeError: The head did not run.
        """
        if not self.logits:
            raise RuntimeError('the head did not run while its loss was computed')
        return HeadSamples(
            logits=join(self.logits),
            labels=join(self.labels),
            weights=join(self.weights),
            locations=torch.tensor(self.sizes),
            activation='sigmoid',
            avg_factor=self._sum_of_metrics() if self.divides_by_metrics else self.avg_factor,
            qualities=join(self.qualities) if self.qualities else None,
        )

    def check_rows(self, head: str, num_classes: int) -> None:
        """Check that the rows of ``loss_cls`` are those of the maps, in their order.

        Raises:
            ConfigError: They are not. Labels and the teacher's logits would be those of other
                samples.
        """
        given, own = join(self.logits), join([rows(maps, num_classes) for maps in self.outputs[0]])
        if given.shape != own.shape or not torch.equal(given, own):
            raise ConfigError(
                f'{head} cannot be read: what its loss_cls is given, '
                f'{tuple(given.shape)}, is not a row for each location of the maps that it '
                f'returns, {tuple(own.shape)}, by level, image, row, column and anchor. It needs a '
                'Tap of its own, register_tap(MyTap())'
            )

    def _sum_of_metrics(self) -> Tensor:
        return reduce_mean(sum(metrics.sum() for metrics in self.qualities)).clamp(min=1)


def join(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate tensors. A single tensor is returned itself, not a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts))
