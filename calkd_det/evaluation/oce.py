"""Object-level calibration error (OCE) of final boxes.

Park et al., `Uncertainty Quantification in Detection Transformers: Object-Level Calibration and
Image-Level Reliability <https://arxiv.org/abs/2412.01782>`_.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pycocotools import mask
from pycocotools.coco import COCO

from calkd_det.evaluation.matching import ImageDetections, image_objects

OCE_IOUS = (0.5, 0.75)


def object_errors(
    coco: COCO, images: Sequence[ImageDetections], category_ids: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the calibration error of each object, whose mean is the OCE.

    The boxes of all classes whose IoU with an object reaches a threshold are its boxes. Their mean
    score p and the label of most of them (of equal ones the first) are compared with the object by
    the Brier score of two outcomes: 2 (1 - p)^2 for the object's label, 2 p^2 for another one. An
    object without a box has an error of 1. The error is the mean over :data:`OCE_IOUS`.

    The paper's own error compares the whole distribution of a box over classes. mmdet's final
    boxes have one score, for which its authors' package takes this approximation.

    Args:
        coco: The ground truth.
        images: The boxes of each image.
        category_ids: The category id of each label.

    Returns:
        Errors (M,), float64, in [0, 2], and labels (M,), int64, of the objects that are no crowd.
    """
    label_of = {category_id: label for label, category_id in enumerate(category_ids)}
    errors, object_labels = [np.zeros(0)], [np.zeros(0, dtype=np.int64)]
    for image in images:
        objects = [
            (box, label)
            for label, box, crowd in image_objects(coco, image.image_id, label_of)
            if not crowd
        ]
        if not objects:
            continue
        labels = np.array([label for _, label in objects])
        object_labels.append(labels)
        if not len(image.scores):
            errors.append(np.ones(len(objects)))
            continue
        boxes = image.boxes.astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        ious = mask.iou(boxes, np.array([box for box, _ in objects]), [0] * len(objects))
        errors.append(np.mean([_errors(image, ious >= t, labels) for t in OCE_IOUS], axis=0))
    return np.concatenate(errors), np.concatenate(object_labels)


def _errors(image: ImageDetections, near: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Compute the errors of objects (M,) from the boxes that are theirs, bool, (N, M)."""
    counts = near.sum(axis=0)
    mean_scores = image.scores.astype(np.float64) @ near / np.maximum(counts, 1)
    known, index = np.unique(image.labels, return_inverse=True)
    votes = (index[None] == np.arange(len(known))[:, None]).astype(np.int64) @ near
    right = known[votes.argmax(axis=0)] == labels
    errors = 2 * np.where(right, 1 - mean_scores, mean_scores) ** 2
    return np.where(counts > 0, errors, 1.0)
