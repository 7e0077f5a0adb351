"""Tap of DETR and its kin, whose queries are matched to objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import ClassVar

import torch
from mmdet.models.dense_heads import (
    ConditionalDETRHead,
    DABDETRHead,
    DDQDETRHead,
    DeformableDETRHead,
    DETRHead,
    DINOHead,
)
from mmdet.models.detectors import DetectionTransformer
from mmdet.models.losses import QualityFocalLoss
from mmdet.structures import DetDataSample, SampleList
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps
from torch import Tensor, nn

from calkd_det.errors import ConfigError
from calkd_det.knowledge import Activation, HeadAnswer, HeadSamples, Kind
from calkd_det.taps.base import CLASS, CLASS_AND_BOX, Tap
from calkd_det.taps.geometry import QUERIES, Geometry
from calkd_det.taps.query_denoising import DenoisingLocations, DenoisingSamples, add_denoising
from calkd_det.taps.query_matching import Queries
from calkd_det.taps.query_record import QueryRecord, distinct_queries
from calkd_det.taps.query_samples import (
    QueryAnswer,
    QueryLocations,
    QuerySamples,
    box_predictions,
    by_object,
)
from calkd_det.taps.random_features import random_features

# The last decoder layer has no prefix in mmdet's names of losses.
LAST_LAYER = ''
# The name of denoising queries in mmdet's names of losses.
DENOISING = 'dn'


class QueryTap(Tap):
    """Tap of mmdet's detection transformers, by forward hooks on the head and its ``loss_cls``.

    The classifiers are those of the decoder layers, named ``d0``, ``d1``, ..., and ``''`` for the
    last one, as in mmdet's names of losses. Without ``teacher.stages`` the last layer alone is
    distilled: it is what predicts, and matching costs as much for each further layer.

    A teacher runs its inference path, without denoising queries of its own. Its queries are its
    own, so they are matched to the student's, see
    :func:`~calkd_det.taps.query_matching.match_queries`. A student's query without a match
    counts with weight 0. The student's denoising queries, named ``dn``, are decoded by the teacher
    in the same pass where ``teacher.denoising`` asks for it.
    """

    built_in: ClassVar[tuple[type[nn.Module], ...]] = (
        DETRHead,
        ConditionalDETRHead,
        DABDETRHead,
        DeformableDETRHead,
        DINOHead,
        DDQDETRHead,
    )
    set_descriptions: ClassVar[dict[str, str]] = {
        'distillation': 'All queries of the last decoder layer, labelled as in training',
        'matched': 'The queries of the last decoder layer that are assigned to an object',
        'rest': 'The queries of the last decoder layer that are assigned to no object',
    }

    known_heads = built_in

    @property
    def head_names(self) -> str:
        names = ', '.join(cls.__name__ for cls in self.built_in)
        return f'a {names} of a detection transformer'

    def supports(self, detector: nn.Module) -> bool:
        # The exact class only, because a subclass may match or classify in another way.
        return isinstance(detector, DetectionTransformer) and (
            type(detector.bbox_head) in self.built_in
        )

    def is_tried(self, detector: nn.Module) -> bool:
        return True

    def num_classes(self, detector: nn.Module) -> int:
        return detector.bbox_head.num_classes

    def activation(self, detector: nn.Module) -> Activation:
        head = detector.bbox_head
        return 'sigmoid' if head.cls_out_channels == head.num_classes else 'softmax'

    def classifiers(self, detector: nn.Module) -> tuple[str, ...]:
        decoder = detector.decoder
        layers = decoder.num_layers if decoder.return_intermediate else 1
        return (*(f'd{layer}' for layer in range(layers - 1)), LAST_LAYER)

    def taught_classifiers(self, detector: nn.Module) -> tuple[str, ...]:
        return (LAST_LAYER,)

    def has_denoising(self, detector: nn.Module) -> bool:
        return hasattr(detector, 'dn_query_generator')

    def geometry(self, detector: nn.Module) -> Geometry:
        return QUERIES

    def kinds(self, detector: nn.Module) -> frozenset[Kind]:
        return CLASS_AND_BOX

    @contextmanager
    def record(
        self,
        detector: nn.Module,
        kinds: frozenset[Kind] = CLASS,
        data_samples: SampleList = (),
    ) -> Iterator[list[HeadSamples]]:
        head, record = detector.bbox_head, QueryRecord()
        samples: list[HeadSamples] = []
        with ExitStack() as hooks:
            handles = [
                head.register_forward_hook(record.on_outputs),
                head.loss_cls.register_forward_pre_hook(record.on_targets, with_kwargs=True),
            ]
            if self.has_denoising(detector):
                embedding = detector.dn_query_generator.label_embedding
                handles += [
                    embedding.register_forward_pre_hook(record.on_noised_labels),
                    detector.decoder.register_forward_pre_hook(record.on_decoder, with_kwargs=True),
                ]
            for handle in handles:
                hooks.callback(handle.remove)
            yield samples
        details = self.activation(detector), kinds, data_samples
        samples.extend(record.samples(detector, self.classifiers(detector), *details))
        if self.has_denoising(detector):
            samples.append(record.denoising_samples(detector, DENOISING, *details))

    def keep(self, detector: nn.Module, kinds: frozenset[Kind] = CLASS) -> None:
        head = detector.bbox_head
        for name in ('loss_cls', 'loss_bbox', 'loss_iou', 'aux_cls_branches', 'aux_reg_branches'):
            if hasattr(head, name):
                delattr(head, name)
        if isinstance(head, DDQDETRHead):  # the last branch is that of dense queries
            del head.cls_branches[-1], head.reg_branches[-1]

    def answers(
        self, detector: nn.Module, feats: tuple[Tensor, ...], pieces: Sequence[HeadSamples]
    ) -> list[QueryAnswer | HeadAnswer]:
        data_samples = pieces[0].locations.data_samples
        denoising = next(
            (piece.locations for piece in pieces if isinstance(piece, DenoisingSamples)), None
        )
        layers, denoised = predict_queries(detector, feats, data_samples, denoising)
        names = self.classifiers(detector)
        answers: list[QueryAnswer | HeadAnswer] = []
        for piece in pieces:
            if isinstance(piece, DenoisingSamples):
                answers.append(_answer_to_denoising(piece, denoised))
            else:
                answers.append(QueryAnswer(layers[names.index(piece.name)], data_samples))
        return answers

    def answer(
        self, detector: nn.Module, feats: tuple[Tensor, ...], samples: HeadSamples
    ) -> QueryAnswer | HeadAnswer:
        return self.answers(detector, feats, [samples])[0]

    def example(
        self, detector: nn.Module, kinds: frozenset[Kind] = CLASS
    ) -> tuple[tuple[Tensor, ...], Sequence[HeadSamples]]:
        levels = getattr(detector, 'num_feature_levels', 1)
        sizes = [(max(1, 8 >> level), max(1, 6 >> level)) for level in range(levels)]
        feats = random_features(sizes, detector.embed_dims)
        shape = (64, 48)
        data_samples = [
            DetDataSample(metainfo=dict(img_shape=shape, batch_input_shape=shape))
            for _ in range(len(feats[0]))
        ]
        layers, _ = predict_queries(detector, feats, data_samples)
        samples = []
        for name, queries in zip(self.classifiers(detector), layers):
            answer = QueryAnswer(queries, data_samples)
            samples.append(
                QuerySamples(
                    logits=answer.logits,
                    labels=torch.full((len(answer.logits),), detector.bbox_head.num_classes),
                    weights=torch.ones(len(answer.logits)),
                    locations=QueryLocations(data_samples, queries),
                    activation=self.activation(detector),
                    name=name,
                    boxes=answer.boxes if 'box' in kinds else None,
                )
            )
        return feats, samples

    @torch.no_grad()
    def sample_sets(
        self, detector: nn.Module, images: Tensor, data_samples: SampleList, seeds: Sequence[int]
    ) -> dict[str, HeadSamples]:
        """See :meth:`Tap.sample_sets`.

        ``distillation``: all queries of the last decoder layer with the labels that the head's own
        assigner gives them. ``matched`` and ``rest``: those that are assigned to an object, and
        the others. A trained detector gives one query an object a high score and low ones to the
        others near it, so the two need not have the same temperature. The columns of ``locations``
        are the index of the image and of the query within it.

        Raises:
            ConfigError: The detector was built without ``train_cfg``, so it has no assigner.
        """
        head = detector.bbox_head
        if not hasattr(head, 'assigner'):
            raise ConfigError(
                'model.train_cfg has no assigner, which tells the queries with an object from the '
                "others: take that of mmdet's config, train_cfg=dict(assigner=dict(type="
                "'HungarianAssigner', ...))"
            )
        layers, _ = predict_queries(detector, detector.extract_feat(images), data_samples)
        queries = layers[-1]
        counted = queries.counted
        if counted is None:
            counted = torch.ones_like(queries.logits[..., 0], dtype=torch.bool)
        logits = [own[kept] for own, kept in zip(queries.logits, counted)]
        boxes = [own[kept] for own, kept in zip(queries.boxes, counted)]
        labels, weights, box_targets, *_ = head.get_targets(
            logits,
            boxes,
            [sample.gt_instances for sample in data_samples],
            [sample.metainfo for sample in data_samples],
        )
        qualities = None
        if isinstance(head.loss_cls, QualityFocalLoss):  # trained to the IoU of the box
            corners = (bbox_cxcywh_to_xyxy(torch.cat(part)) for part in (boxes, box_targets))
            qualities = bbox_overlaps(*corners, is_aligned=True)
        samples = HeadSamples(
            logits=torch.cat(logits),
            labels=torch.cat(labels),
            weights=torch.cat(weights),
            locations=counted.nonzero(),
            activation=self.activation(detector),
            qualities=qualities,
        )
        return by_object(samples)


def predict_queries(
    detector: nn.Module,
    feats: tuple[Tensor, ...],
    data_samples: SampleList,
    denoising: DenoisingLocations | None = None,
) -> tuple[list[Queries], Queries]:
    """Run transformer and head of a detector in eval mode.

    Args:
        detector: A detection transformer, in eval mode.
        feats: Its feature maps of the batch.
        data_samples: Meta information of each image.
        denoising: Denoising queries of another detector that are decoded as well.

    Returns:
        What its own queries of each decoder layer predict, and the denoising ones of the last.
    """
    if denoising is None:
        inputs = detector.forward_transformer(feats, data_samples)
    else:
        encoder_inputs, decoder_inputs = detector.pre_transformer(feats, data_samples)
        encoded = detector.forward_encoder(**encoder_inputs)
        own_inputs, _ = detector.pre_decoder(**encoded, batch_data_samples=data_samples)
        decoder_inputs.update(own_inputs)
        add_denoising(detector, decoder_inputs, denoising)
        inputs = detector.forward_decoder(**decoder_inputs)
    logits, boxes = detector.bbox_head(**inputs)
    number = 0 if denoising is None else denoising.boxes.shape[1]
    layers = [
        Queries(
            logits[layer][:, number:], boxes[layer][:, number:], distinct_queries(detector, layer)
        )
        for layer in range(len(logits))
    ]
    return layers, Queries(logits[-1][:, :number], boxes[-1][:, :number])


def _answer_to_denoising(piece: DenoisingSamples, denoised: Queries) -> HeadAnswer:
    boxes = None
    if piece.boxes is not None:
        rows = piece.boxes.rows
        boxes = box_predictions(
            denoised.boxes.flatten(0, 1)[rows],
            rows,
            piece.locations.data_samples,
            denoised.boxes.shape[1],
        )
    return HeadAnswer(denoised.logits.flatten(0, 1), boxes)
