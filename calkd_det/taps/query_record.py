"""Record what the decoder layers of a head of queries predict in one step."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from mmdet.structures import SampleList
from torch import Tensor, nn

from calkd_det.knowledge import Activation, HeadSamples, Kind
from calkd_det.taps.query_denoising import DenoisingLocations, DenoisingSamples
from calkd_det.taps.query_matching import Queries
from calkd_det.taps.query_samples import QueryLocations, QuerySamples, box_predictions


@dataclass
class QueryRecord:
    """Record of a head's outputs, and of the arguments of its ``loss_cls`` and of other modules.

    mmdet calls ``loss_cls`` for the decoder layers in their order, then for proposals of the
    encoder, then for denoising queries.

    Attributes:
        outputs: Class logits, (L, B, Q, K), and boxes, (L, B, Q, 4), of all queries of L layers.
        targets: Labels, weights and divisor of each call of ``loss_cls``.
        noised_labels: Labels of the denoising queries, see
            :class:`~calkd_det.taps.query_denoising.DenoisingLocations`.
        reference_boxes: Boxes that the decoder starts with, shape (B, Q, 4).
    """

    outputs: tuple[Tensor, Tensor] | None = None
    targets: list[tuple[Tensor, Tensor, Tensor | float | None]] = field(default_factory=list)
    noised_labels: Tensor | None = None
    reference_boxes: Tensor | None = None

    def on_outputs(self, head: nn.Module, args: tuple, outputs: tuple[Tensor, Tensor]) -> None:
        self.outputs = outputs
        self.targets = []

    def on_targets(self, loss: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        # Where the score includes the quality of the box, the target is a pair with that quality.
        labels = args[1][0] if isinstance(args[1], tuple) else args[1]
        weights = args[2] if len(args) > 2 else kwargs['weight']
        avg_factor = kwargs['avg_factor']
        if isinstance(avg_factor, Tensor):
            avg_factor = avg_factor.reshape(())
        self.targets.append((labels, weights, avg_factor))

    def on_noised_labels(self, embedding: nn.Module, args: tuple[Tensor]) -> None:
        self.noised_labels = args[0]

    def on_decoder(self, decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.reference_boxes = kwargs['reference_points'].detach()

    def samples(
        self,
        detector: nn.Module,
        names: tuple[str, ...],
        activation: Activation,
        kinds: frozenset[Kind],
        data_samples: SampleList,
    ) -> list[QuerySamples]:
        """Return the matching queries of each decoder layer.

        Args:
            detector: The detector that ran.
            names: The name of each layer.
            activation: How the head turns logits into scores.
            kinds: What to record.
            data_samples: Meta information of each image.

        Raises:
            RuntimeError: The head did not run.
        """
        if self.outputs is None or len(self.targets) < len(names):
            raise RuntimeError('the head did not run while its loss was computed')
        samples = []
        matching = matching_queries(detector, self.outputs[0].shape[2])
        for layer, name in enumerate(names):
            logits, boxes = (output[layer][:, matching] for output in self.outputs)
            labels, weights, avg_factor = self.targets[layer]
            counted = distinct_queries(detector, layer)
            if counted is not None:
                no_object = labels.new_full(counted.shape, detector.bbox_head.num_classes)
                labels = no_object.masked_scatter(counted, labels)
                weights = weights.new_zeros(counted.shape).masked_scatter(counted, weights)
            piece = QuerySamples(
                logits=logits.flatten(0, 1),
                labels=labels.flatten(),
                weights=weights.flatten(),
                locations=QueryLocations(
                    data_samples, Queries(logits.detach(), boxes.detach(), counted)
                ),
                activation=activation,
                name=name,
                avg_factor=avg_factor,
            )
            samples.append(_with_boxes(piece, boxes) if 'box' in kinds else piece)
        return samples

    def denoising_samples(
        self,
        detector: nn.Module,
        name: str,
        activation: Activation,
        kinds: frozenset[Kind],
        data_samples: SampleList,
    ) -> DenoisingSamples:
        """Return the denoising queries of the last decoder layer.

        Padding counts with weight 0. The arguments are those of :meth:`samples`, and the name.
        """
        stop = matching_queries(detector, self.outputs[0].shape[2]).start
        logits, boxes = (output[-1][:, :stop] for output in self.outputs)
        locations = DenoisingLocations(
            data_samples, self.noised_labels, self.reference_boxes[:, :stop]
        )
        if stop:
            labels, _, avg_factor = self.targets[-1]
        else:  # mmdet does not call loss_cls without objects
            labels, avg_factor = self.noised_labels, 1.0
        piece = DenoisingSamples(
            logits=logits.flatten(0, 1),
            labels=labels,
            weights=locations.not_padded().flatten().to(logits.dtype),
            locations=locations,
            activation=activation,
            name=name,
            avg_factor=avg_factor,
        )
        return _with_boxes(piece, boxes) if 'box' in kinds else piece


def _with_boxes(piece: HeadSamples, boxes: Tensor) -> HeadSamples:
    """Add the boxes of the foreground samples; ``boxes`` are normalised, shape (B, Q, 4)."""
    rows = piece.foreground()
    predictions = box_predictions(
        boxes.flatten(0, 1)[rows], rows, piece.locations.data_samples, boxes.shape[1]
    )
    return replace(piece, boxes=predictions)


def matching_queries(detector: nn.Module, total: int) -> slice:
    """Return which of a head's queries are matched to objects.

    Args:
        detector: The detector that ran.
        total: The number of queries of an image that the head ran on.
    """
    if hasattr(detector, 'dqs_cfg'):  # DDQ has dense queries after them
        start, number = detector.cache_dict['dis_query_info']
        return slice(start, start + number)
    if hasattr(detector, 'dn_query_generator'):
        return slice(total - detector.num_queries, None)
    return slice(None)


def distinct_queries(detector: nn.Module, layer: int) -> Tensor | None:
    """Return which queries of a layer DDQ keeps as distinct, bool, shape (B, Q).

    None where all are kept, and for other detectors.
    """
    if not hasattr(detector, 'dqs_cfg') or layer == 0:
        return None
    cache = detector.cache_dict
    masks = cache['distinct_query_mask'][layer - 1]
    # mmdet's own loss and prediction read the first row of the first attention head's mask.
    return torch.stack([mask[0] for mask in masks[:: cache['num_heads']]])
