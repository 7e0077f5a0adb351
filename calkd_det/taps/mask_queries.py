"""Tap of MaskFormer and Mask2Former, whose queries predict a class and a mask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from mmdet.models.dense_heads import Mask2FormerHead, MaskFormerHead
from mmdet.models.detectors import MaskFormer
from mmdet.structures import DetDataSample, SampleList
from mmengine.structures import InstanceData
from torch import Tensor, nn

from calkd_det.errors import ConfigError
from calkd_det.knowledge import Activation, HeadSamples, Kind
from calkd_det.taps.base import BEFORE_HEADS, CLASS, Tap, keep_children
from calkd_det.taps.geometry import MASK_QUERIES, Geometry
from calkd_det.taps.queries import LAST_LAYER, QueryTap
from calkd_det.taps.query_matching import MaskQueries
from calkd_det.taps.query_samples import QueryAnswer, QueryLocations, QuerySamples, by_object

_LOSSES = ('loss_cls', 'loss_mask', 'loss_dice')


class MaskQueryTap(Tap):
    """Tap of mmdet's mask transformers, by forward hooks on the head and its ``loss_cls``.

    Classes alone are read. The classifiers are those of the decoder layers, named as in
    :class:`~calkd_det.taps.queries.QueryTap`, and the last alone is distilled without
    ``teacher.stages``. A teacher's queries are matched to the student's by classes and masks, see
    :meth:`~calkd_det.taps.query_matching.MaskQueries.place_costs`.
    """

    built_in: ClassVar[tuple[type[nn.Module], ...]] = (MaskFormerHead, Mask2FormerHead)
    known_heads = built_in
    set_descriptions: ClassVar[dict[str, str]] = QueryTap.set_descriptions

    @property
    def head_names(self) -> str:
        return f'a {", ".join(cls.__name__ for cls in self.built_in)} of a mask transformer'

    def supports(self, detector: nn.Module) -> bool:
        return isinstance(detector, MaskFormer) and type(detector.panoptic_head) in self.built_in

    def is_tried(self, detector: nn.Module) -> bool:
        return True

    def num_classes(self, detector: nn.Module) -> int:
        return detector.panoptic_head.num_classes

    def activation(self, detector: nn.Module) -> Activation:
        return 'softmax'

    def classifiers(self, detector: nn.Module) -> tuple[str, ...]:
        head = detector.panoptic_head
        # Mask2Former also classifies its queries before the first layer.
        layers = head.transformer_decoder.num_layers + isinstance(head, Mask2FormerHead)
        return (*(f'd{layer}' for layer in range(layers - 1)), LAST_LAYER)

    def taught_classifiers(self, detector: nn.Module) -> tuple[str, ...]:
        return (LAST_LAYER,)

    def geometry(self, detector: nn.Module) -> Geometry:
        return MASK_QUERIES

    @contextmanager
    def record(
        self,
        detector: nn.Module,
        kinds: frozenset[Kind] = CLASS,
        data_samples: SampleList = (),
    ) -> Iterator[list[HeadSamples]]:
        head, record = detector.panoptic_head, MaskRecord()
        samples: list[HeadSamples] = []
        with ExitStack() as hooks:
            for handle in (
                head.register_forward_hook(record.on_outputs),
                head.loss_cls.register_forward_pre_hook(record.on_targets, with_kwargs=True),
            ):
                hooks.callback(handle.remove)
            yield samples
        samples.extend(record.samples(self.classifiers(detector), data_samples))

    def keep(self, detector: nn.Module, kinds: frozenset[Kind] = CLASS) -> None:
        keep_children(detector, (*BEFORE_HEADS, 'panoptic_head'))
        for name in _LOSSES:
            delattr(detector.panoptic_head, name)

    def answers(
        self, detector: nn.Module, feats: tuple[Tensor, ...], pieces: Sequence[HeadSamples]
    ) -> list[QueryAnswer]:
        data_samples = pieces[0].locations.data_samples
        layers = [MaskQueries(*each) for each in zip(*detector.panoptic_head(feats, data_samples))]
        names = self.classifiers(detector)
        return [QueryAnswer(layers[names.index(piece.name)], data_samples) for piece in pieces]

    def answer(
        self, detector: nn.Module, feats: tuple[Tensor, ...], samples: HeadSamples
    ) -> QueryAnswer:
        return self.answers(detector, feats, [samples])[0]

    def example(
        self, detector: nn.Module, kinds: frozenset[Kind] = CLASS
    ) -> tuple[tuple[Tensor, ...], Sequence[HeadSamples]]:
        shape = (96, 64)
        widths = _input_channels(detector.panoptic_head.pixel_decoder)
        feats = tuple(
            torch.randn(2, width, shape[0] >> level, shape[1] >> level)
            for level, width in enumerate(widths, 2)
        )
        data_samples = [
            DetDataSample(metainfo=dict(img_shape=shape, batch_input_shape=shape)) for _ in range(2)
        ]
        outputs = detector.panoptic_head(feats, data_samples)
        samples = [
            QuerySamples(
                logits=logits.flatten(0, 1),
                labels=torch.full((logits.shape[:2].numel(),), self.num_classes(detector)),
                weights=torch.ones(logits.shape[:2].numel()),
                locations=QueryLocations(data_samples, MaskQueries(logits, masks)),
                activation='softmax',
                name=name,
            )
            for name, logits, masks in zip(self.classifiers(detector), *outputs)
        ]
        return feats, samples

    @torch.no_grad()
    def sample_sets(
        self, detector: nn.Module, images: Tensor, data_samples: SampleList, seeds: Sequence[int]
    ) -> dict[str, HeadSamples]:
        """See :meth:`Tap.sample_sets` and :meth:`QueryTap.sample_sets`.

        Raises:
            ConfigError: The detector was built without ``train_cfg``, or it also finds stuff,
                whose annotations are no objects.
        """
        head = detector.panoptic_head
        if not hasattr(head, 'assigner'):
            raise ConfigError(
                'model.train_cfg has no assigner, which tells the queries with an object from the '
                "others: take that of mmdet's config"
            )
        if head.num_stuff_classes:
            raise ConfigError(
                f'model.panoptic_head.num_stuff_classes is {head.num_stuff_classes}: a detector of '
                'stuff cannot be calibrated, because annotations of objects do not tell which '
                'queries are right; take an instance segmentation, or calibrator='
                "dict(type='TemperatureScaling', temperature=...) with a T of your own"
            )
        outputs = head(detector.extract_feat(images), data_samples)
        logits, masks = (layers[-1] for layers in outputs)
        labels = []
        for image, (sample, seed) in enumerate(zip(data_samples, seeds)):
            objects = sample.gt_instances
            padded = objects.masks.pad(images.shape[2:])
            (target,) = head.preprocess_gt(
                [InstanceData(labels=objects.labels, masks=padded)], [None]
            )
            torch.manual_seed(seed)  # Mask2Former compares masks at random points
            labels.append(
                head._get_targets_single(logits[image], masks[image], target, sample.metainfo)[0]
            )
        labels = torch.cat(labels)
        samples = HeadSamples(
            logits=logits.flatten(0, 1),
            labels=labels,
            weights=torch.ones_like(labels, dtype=logits.dtype),
            locations=torch.ones_like(logits[..., 0]).nonzero(),
            activation='softmax',
        )
        return by_object(samples)


def _input_channels(pixel_decoder: nn.Module) -> list[int]:
    """Return the number of channels of each level that a pixel decoder reads, finest first."""
    if hasattr(pixel_decoder, 'input_convs'):  # of Mask2Former, coarsest first
        convs = [*pixel_decoder.lateral_convs, *reversed(pixel_decoder.input_convs)]
        return [conv.conv.in_channels for conv in convs]
    fine = [conv.conv.in_channels for conv in pixel_decoder.lateral_convs]
    if hasattr(pixel_decoder, 'encoder_in_proj'):
        return [*fine, pixel_decoder.encoder_in_proj.in_channels]
    return [*fine, pixel_decoder.last_feat_conv.conv.in_channels]


@dataclass
class MaskRecord:
    """Record of a head's outputs, and of the arguments of its ``loss_cls``, layer by layer."""

    outputs: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None
    targets: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def on_outputs(
        self, head: nn.Module, args: tuple, outputs: tuple[Sequence[Tensor], Sequence[Tensor]]
    ) -> None:
        self.outputs = outputs
        self.targets = []

    def on_targets(self, loss: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.targets.append((args[1], args[2], kwargs['avg_factor']))

    def samples(self, names: Sequence[str], data_samples: SampleList) -> list[QuerySamples]:
        """Return the queries of each decoder layer.

        Raises:
            RuntimeError: The head did not run.
        """
        if self.outputs is None or len(self.targets) < len(names):
            raise RuntimeError('the head did not run while its loss was computed')
        return [
            QuerySamples(
                logits=logits.flatten(0, 1),
                labels=labels,
                weights=weights,
                locations=QueryLocations(
                    data_samples, MaskQueries(logits.detach(), masks.detach())
                ),
                activation='softmax',
                name=name,
                avg_factor=avg_factor,
            )
            for name, logits, masks, (labels, weights, avg_factor) in zip(
                names, *self.outputs, self.targets
            )
        ]
