"""Matching of detections to ground truth, by pycocotools."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

MAX_DETECTIONS = 100
# COCOeval matches at 'IoU >= threshold'; a threshold of 0 would match boxes that do not touch.
_SMALLEST_IOU = float(np.finfo(np.float64).tiny)


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


@dataclass(frozen=True)
class DetectionMatches:
    """Detections with the IoU of their matches.

    Attributes:
        scores: (N,) float64.
        labels: (N,) int64.
        ious: (N,) float64. IoU with the matched ground truth, 0 for a false positive.
    """

    scores: np.ndarray
    labels: np.ndarray
    ious: np.ndarray

    @property
    def hits(self) -> np.ndarray:
        """Whether each detection is a true positive, bool, shape (N,)."""
        return self.ious > 0

    def __len__(self) -> int:
        return len(self.scores)


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
    detections of an image and a class are used.

    Args:
        coco: The ground truth.
        images: The detections. Annotations of other images are not used.
        category_ids: The category id of each label.
        iou_thrs: Thresholds in [0, 1]. 0 means any overlap, that is IoU > 0.

    Returns:
        The matches for each threshold, in the same order. Their numbers of detections can differ,
        because at a low threshold more detections match crowd regions.
    """
    results = [
        dict(
            image_id=image.image_id,
            category_id=category_ids[label],
            bbox=[x1, y1, x2 - x1, y2 - y1],
            score=score,
        )
        for image in images
        for (x1, y1, x2, y2), score, label in zip(
            image.boxes.tolist(), image.scores.tolist(), image.labels.tolist()
        )
    ]
    if not results:
        empty = DetectionMatches(np.zeros(0), np.zeros(0, np.int64), np.zeros(0))
        return [empty for _ in iou_thrs]
    with redirect_stdout(io.StringIO()):  # pycocotools reports its progress by print()
        evaluation = COCOeval(coco, coco.loadRes(results), 'bbox')
        evaluation.params.imgIds = [image.image_id for image in images]
        evaluation.params.catIds = list(category_ids)
        evaluation.params.iouThrs = np.maximum(iou_thrs, _SMALLEST_IOU)
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.params.areaRng = evaluation.params.areaRng[:1]  # 'all'
        evaluation.evaluate()
    label_of = {category_id: label for label, category_id in enumerate(category_ids)}
    records = [record for record in evaluation.evalImgs if record and record['dtIds']]
    scores = np.concatenate([record['dtScores'] for record in records])
    labels = np.concatenate(
        [np.full(len(record['dtIds']), label_of[record['category_id']]) for record in records]
    )
    ious = np.concatenate([_matched_ious(evaluation, record) for record in records], axis=1)
    ignored = np.concatenate([record['dtIgnore'] for record in records], axis=1).astype(bool)
    return [
        DetectionMatches(scores[~ignore], labels[~ignore], iou[~ignore])
        for iou, ignore in zip(ious, ignored)
    ]


def _matched_ious(evaluation: COCOeval, record: dict[str, Any]) -> np.ndarray:
    """Return the IoU with the matched ground truth, (thresholds, detections), 0 without a match."""
    ious = np.zeros(record['dtMatches'].shape)
    image_id, category_id = record['image_id'], record['category_id']
    overlaps = evaluation.ious[image_id, category_id]
    # The columns of `overlaps` are in this order; the record's own order has crowd regions last.
    gt_ids = evaluation.cocoGt.getAnnIds(imgIds=[image_id], catIds=[category_id])
    rows = {dt_id: row for row, dt_id in enumerate(record['dtIds'])}
    # `gtMatches`, because an annotation with id 0 looks like no match in `dtMatches`.
    for threshold, matches in enumerate(record['gtMatches']):
        for gt_id, dt_id in zip(record['gtIds'], matches):
            if dt_id:
                row = rows[dt_id]
                ious[threshold, row] = overlaps[row, gt_ids.index(gt_id)]
    return ious
