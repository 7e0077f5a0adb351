"""Matching of detections to ground truth, by the rules of pycocotools."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask
from pycocotools.coco import COCO

MAX_DETECTIONS = 100
# A match has 'IoU >= threshold'; a threshold of 0 would match boxes that do not touch.
_SMALLEST_IOU = float(np.finfo(np.float64).tiny)
# As in pycocotools: a threshold of 1 is met by a box that is equal up to rounding.
_LARGEST_IOU = 1 - 1e-10


@dataclass(frozen=True)
class ImageDetections:
    """The final boxes of one image.

    Attributes:
        image_id: The image's id in the annotation file.
        boxes: (N, 4) floating, x1, y1, x2, y2 in pixels of the original image.
        scores: (N,) floating, in [0, 1].
        labels: (N,) integers, indices into the data set's classes.
    """

    image_id: int
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    @classmethod
    def from_instances(
        cls, image_id: int, instances: Any, least_score: float = 0.0
    ) -> ImageDetections:
        """Return the boxes of a detector's ``pred_instances`` that reach a score.

        Args:
            image_id: The image's id in the annotation file.
            instances: mmdet's ``InstanceData`` or a dict, with tensors ``bboxes`` (N, 4),
                ``scores`` (N,) and ``labels`` (N,).
            least_score: The least score.
        """
        kept = instances['scores'] >= least_score
        return cls(
            image_id,
            boxes=instances['bboxes'][kept].float().cpu().numpy(),
            scores=instances['scores'][kept].float().cpu().numpy(),
            labels=instances['labels'][kept].cpu().numpy(),
        )

    def select(self, kept: np.ndarray) -> ImageDetections:
        """Return the boxes of a mask."""
        arrays = self.boxes[kept], self.scores[kept], self.labels[kept]
        return ImageDetections(self.image_id, *arrays)


@dataclass(frozen=True)
class DetectionMatches:
    """Detections with the IoU of their matches.

    Attributes:
        scores: (N,) float64.
        labels: (N,) int64.
        ious: (N,) float64. IoU with the matched ground truth, 0 for a false positive.
        image_indices: (N,) int64, which of the different images each detection is of, in the order
            in which they were given; None where images do not matter.
    """

    scores: np.ndarray
    labels: np.ndarray
    ious: np.ndarray
    image_indices: np.ndarray | None = None

    @property
    def hits(self) -> np.ndarray:
        """Whether each detection is a true positive, bool, shape (N,)."""
        return self.ious > 0

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, kept: np.ndarray) -> DetectionMatches:
        """Return the detections of a mask or of indices."""
        indices = None if self.image_indices is None else self.image_indices[kept]
        return DetectionMatches(self.scores[kept], self.labels[kept], self.ious[kept], indices)


def match_detections(
    coco: COCO,
    images: Sequence[ImageDetections],
    category_ids: Sequence[int],
    iou_thrs: Sequence[float],
) -> list[DetectionMatches]:
    """Match detections to ground truth as pycocotools does for its AP.

    Detections of an image and a class are matched in the order of their scores. Each takes the
    ground truth of largest IoU among those that are not taken and whose IoU reaches the threshold.
    A detection that matches a crowd region only is left out. At most :data:`MAX_DETECTIONS`
    detections of an image and a class are used. To leave out detections of low scores afterwards
    changes no match of the others.

    pycocotools' own loop visits each pair of an image and a class. This one visits the pairs with
    detections, which are few among thousands of classes.

    In a file of LVIS an image lists classes that it does not show (``neg_category_ids``) and
    classes of which not all objects are annotated (``not_exhaustive_category_ids``). As for LVIS's
    AP, detections of a class that an image neither has nor lists as absent are left out, and so
    are those without a match of a class that is not annotated in full.

    Args:
        coco: The ground truth.
        images: The detections. Annotations of other images are not used.
        category_ids: The category id of each label.
        iou_thrs: Thresholds in [0, 1]. 0 means any overlap, that is IoU > 0.

    Returns:
        The matches for each threshold, in the same order. Their numbers of detections can differ,
        because at a low threshold more detections match crowd regions.
    """
    ids = list(dict.fromkeys(image.image_id for image in images))
    index_of = {image_id: index for index, image_id in enumerate(ids)}
    indices = np.repeat(
        np.array([index_of[image.image_id] for image in images], dtype=np.int64),
        [len(image.scores) for image in images],
    )
    boxes, scores, labels = (
        np.concatenate([getattr(image, name) for image in images] or [np.zeros(empty)])
        for name, empty in (('boxes', (0, 4)), ('scores', 0), ('labels', 0))
    )
    order = np.lexsort((-scores, labels, indices))
    indices, labels = indices[order], labels[order].astype(np.int64)
    scores, boxes = scores[order].astype(np.float64), boxes[order].astype(np.float64)
    starts = _group_starts(indices, labels)
    rank = np.arange(len(scores)) - np.repeat(starts, np.diff(starts, append=len(scores)))
    kept = rank < MAX_DETECTIONS
    indices, labels, scores, boxes = (a[kept] for a in (indices, labels, scores, boxes))
    boxes[:, 2:] -= boxes[:, :2]  # x, y, w, h

    thresholds = np.clip(iou_thrs, _SMALLEST_IOU, _LARGEST_IOU).tolist()
    ious = np.zeros((len(thresholds), len(scores)))
    ignored = np.zeros(ious.shape, dtype=bool)
    objects = _objects(coco, ids, category_ids)
    federated = _Federated(coco, category_ids)
    starts = _group_starts(indices, labels)
    for start, end in zip(starts, np.append(starts[1:], len(scores))):
        image_id, label = ids[indices[start]], int(labels[start])
        group = objects.get((image_id, label))
        if group is None:
            ignored[:, start:end] = not federated.annotates(image_id, label)
            continue
        overlaps = mask.iou(boxes[start:end], np.array([box for box, _ in group]), _crowds(group))
        for row, threshold in enumerate(thresholds):
            ious[row, start:end], ignored[row, start:end] = _match_group(
                overlaps.tolist(), _crowds(group), threshold
            )
        if federated.is_partial(image_id, label):
            ignored[:, start:end] |= ious[:, start:end] == 0
    return [
        DetectionMatches(scores, labels, iou, indices).select(~ignore)
        for iou, ignore in zip(ious, ignored)
    ]


class _Federated:
    """Which classes are annotated in an image of LVIS; all of them in other data sets."""

    def __init__(self, coco: COCO, category_ids: Sequence[int]) -> None:
        self.images = coco.imgs
        self.category_ids = category_ids

    def annotates(self, image_id: int, label: int) -> bool:
        """Return whether a class of which an image has no object is known to be absent."""
        absent = self.images.get(image_id, {}).get('neg_category_ids')
        if absent is None or self.category_ids[label] in absent:
            return not self.is_partial(image_id, label)
        return False

    def is_partial(self, image_id: int, label: int) -> bool:
        """Return whether some objects of a class are not annotated in an image."""
        partial = self.images.get(image_id, {}).get('not_exhaustive_category_ids', ())
        return self.category_ids[label] in partial


def count_objects(
    coco: COCO, images: Sequence[ImageDetections], category_ids: Sequence[int]
) -> np.ndarray:
    """Return the number of objects of each class in the images, crowd regions apart, int64 (C,)."""
    counts = np.zeros(len(category_ids), dtype=np.int64)
    groups = _objects(coco, {image.image_id for image in images}, category_ids)
    for (_, label), group in groups.items():
        counts[label] += len(group) - sum(_crowds(group))
    return counts


def _objects(
    coco: COCO, image_ids: Iterable[int], category_ids: Sequence[int]
) -> dict[tuple[int, int], list[tuple[list[float], int]]]:
    """Return box (x, y, w, h) and crowd flag of the objects of each pair of image and label."""
    objects = defaultdict(list)
    label_of = {category_id: label for label, category_id in enumerate(category_ids)}
    for image_id in image_ids:
        for label, box, crowd in image_objects(coco, image_id, label_of):
            objects[image_id, label].append((box, crowd))
    return objects


def image_objects(
    coco: COCO, image_id: int, label_of: Mapping[int, int]
) -> Iterator[tuple[int, list[float], int]]:
    """Yield label, box (x, y, w, h) and crowd flag of the objects of an image.

    Args:
        coco: The ground truth.
        image_id: The image.
        label_of: The label of each category id; others are left out.
    """
    for annotation in coco.imgToAnns.get(image_id, ()):
        label = label_of.get(annotation['category_id'])
        if label is not None:
            yield label, annotation['bbox'], int(annotation.get('iscrowd', 0))


def _crowds(group: list[tuple[list[float], int]]) -> list[int]:
    return [crowd for _, crowd in group]


def _group_starts(indices: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return where each run of equal image and label starts."""
    if not len(labels):
        return np.zeros(0, dtype=np.int64)
    changed = (np.diff(indices) != 0) | (np.diff(labels) != 0)
    return np.concatenate([[0], np.flatnonzero(changed) + 1])


def _match_group(
    overlaps: list[list[float]], crowds: list[int], threshold: float
) -> tuple[list[float], list[bool]]:
    """Match the detections of an image and a class, highest score first.

    Args:
        overlaps: IoU of each detection with each object.
        crowds: Whether each object is a crowd region.
        threshold: The least IoU of a match.

    Returns:
        The IoU of each detection with its match or 0, and whether it is left out.
    """
    free = [not crowd for crowd in crowds]
    ious, ignored = [], []
    for row in overlaps:
        best, best_iou = None, threshold
        for index, iou in enumerate(row):
            # Of objects of equal IoU the last one is taken, as by pycocotools.
            if free[index] and iou >= best_iou:
                best, best_iou = index, iou
        if best is not None:
            free[best] = False
        ious.append(0.0 if best is None else best_iou)
        ignored.append(best is None and any(c and iou >= threshold for c, iou in zip(crowds, row)))
    return ious, ignored
