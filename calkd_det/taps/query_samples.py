"""Samples of heads of queries, and the teacher's answer to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from mmdet.structures import SampleList
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from torch import Tensor

from calkd_det.knowledge import BoxPredictions, HeadAnswer, HeadSamples
from calkd_det.taps.query_matching import MaskQueries, Queries, match_queries


@dataclass(frozen=True)
class QueryLocations:
    """The question to a teacher about the queries of a batch.

    Attributes:
        data_samples: Meta information of each image.
        queries: What the student's queries predict, without a graph.
    """

    data_samples: SampleList
    queries: Queries | MaskQueries


@dataclass(frozen=True)
class QuerySamples(HeadSamples):
    """The queries of one decoder layer, image by image; ``locations`` are :class:`QueryLocations`.

    A teacher answers with its own queries. They are matched after calibration, because the costs
    compare scores of the same classes.
    """

    locations: QueryLocations

    def calibrate(self, answer: QueryAnswer, calibrator: Callable[[Tensor], Tensor]) -> HeadAnswer:
        """Calibrate the logits of the teacher's queries, and match them to the student's."""
        teacher = answer.queries
        logits = calibrator(teacher.logits.flatten(0, 1)).unflatten(0, teacher.logits.shape[:2])
        student = self.locations.queries
        matches = match_queries(student, replace(teacher, logits=logits), self.activation)
        index = matches.clamp(min=0)
        images = torch.arange(len(index), device=index.device)[:, None].expand_as(index)
        boxes = None
        if self.boxes is not None:
            rows = self.boxes.rows
            normalised = teacher.boxes[images, index].flatten(0, 1)[rows]
            boxes = box_predictions(normalised, rows, self.locations.data_samples, index.shape[1])
        return HeadAnswer(
            logits[images, index].flatten(0, 1), boxes, answered=(matches >= 0).flatten()
        )


@dataclass(frozen=True)
class QueryAnswer:
    """All queries of one decoder layer of a teacher.

    Attributes:
        queries: What they predict; logits over the teacher's classes, not calibrated.
        data_samples: Meta information of each image.
    """

    queries: Queries | MaskQueries
    data_samples: SampleList

    @property
    def logits(self) -> Tensor:
        """Class logits of all queries, float, shape (B * Q', K)."""
        return self.queries.logits.flatten(0, 1)

    @property
    def boxes(self) -> BoxPredictions | None:
        """Boxes of all queries; None where they predict masks."""
        if isinstance(self.queries, MaskQueries):
            return None
        normalised = self.queries.boxes.flatten(0, 1)
        rows = torch.arange(len(normalised), device=normalised.device)
        return box_predictions(normalised, rows, self.data_samples, self.queries.boxes.shape[1])


def by_object(samples: HeadSamples) -> dict[str, HeadSamples]:
    """Return all queries, those that are assigned to an object, and the others."""
    matched = samples.labels < samples.num_classes
    return {
        'distillation': samples,
        'matched': samples.select(matched),
        'rest': samples.select(~matched),
    }


def box_predictions(
    normalised: Tensor, rows: Tensor, data_samples: SampleList, num_queries: int
) -> BoxPredictions:
    """Return the boxes of some queries in both units.

    Args:
        normalised: Centre x, centre y, width and height as shares of the image, shape (M, 4).
        rows: Index of each among all queries of the batch, int64, shape (M,).
        data_samples: Meta information of each image.
        num_queries: Number of queries of an image.
    """
    normalised = normalised.float()
    sizes = image_sizes(data_samples, normalised)[rows.div(num_queries, rounding_mode='floor')]
    return BoxPredictions(rows, bbox_cxcywh_to_xyxy(normalised) * sizes, normalised=normalised)


def image_sizes(data_samples: Sequence, like: Tensor) -> Tensor:
    """Return width, height, width and height in pixels of each image, shape (B, 4)."""
    sizes = [sample.img_shape[:2] for sample in data_samples]
    return like.new_tensor([(width, height) * 2 for height, width in sizes])
