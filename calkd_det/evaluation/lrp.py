"""Localisation Recall Precision (LRP) error of detections, and the thresholds that minimise it.

Oksuz et al., `One Metric to Measure them All: Localisation Recall Precision (LRP) for Evaluating
Visual Detection Tasks <https://arxiv.org/abs/2011.10772>`_, TPAMI 2022.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from calkd_det.evaluation.matching import DetectionMatches

# Errors that differ less are equal up to the order of summation.
_TIE = 1e-12


@dataclass(frozen=True)
class LrpErrors:
    """LRP errors of each class, float64, shape (C,), in [0, 1].

    A class without objects has NaN in all. Means over classes leave out NaN.

    Attributes:
        total: The LRP error, (sum of (1 - IoU) / (1 - iou_thr) + FP + FN) / (TP + FP + FN).
        localisation: Mean of 1 - IoU over the true positives; NaN without any.
        false_positive: Share of false positives among the detections; NaN without a detection.
        false_negative: Share of objects without a match.
    """

    total: np.ndarray
    localisation: np.ndarray
    false_positive: np.ndarray
    false_negative: np.ndarray


def lrp_errors(matches: DetectionMatches, num_objects: np.ndarray, iou_thr: float) -> LrpErrors:
    """Compute the LRP error of each class and its parts, from all detections that are given.

    Args:
        matches: Detections matched at ``iou_thr``.
        num_objects: Number of objects of each class, integers, shape (C,).
        iou_thr: The least IoU of a true positive, in [0, 1]; 0 for any overlap.

    Example:
        >>> matches = DetectionMatches(np.array([0.9, 0.8]), np.array([0, 0]), np.array([0.75, 0]))
        >>> errors = lrp_errors(matches, np.array([2]), iou_thr=0.5)
        >>> float(errors.total[0]), float(errors.localisation[0])  # (0.25 / 0.5 + 1 + 1) / 3
        (0.8333333333333334, 0.25)
        >>> float(errors.false_positive[0]), float(errors.false_negative[0])
        (0.5, 0.5)
    """
    size, hits = len(num_objects), matches.hits
    true_positives = np.bincount(matches.labels[hits], minlength=size)
    false_positives = np.bincount(matches.labels[~hits], minlength=size)
    offsets = np.bincount(matches.labels[hits], weights=1 - matches.ious[hits], minlength=size)
    return _errors(true_positives, false_positives, offsets, np.asarray(num_objects), iou_thr)


def optimal_lrp(
    matches: DetectionMatches, num_objects: np.ndarray, iou_thr: float
) -> tuple[LrpErrors, np.ndarray]:
    """Compute the optimal LRP error (oLRP) of each class and the score threshold that has it.

    A threshold s keeps the detections of score >= s. The oLRP is the least LRP error of all
    thresholds; of thresholds with the same error it is that of the highest one. The matches of the
    detections that a threshold keeps are those among all detections.

    Args:
        matches: Detections matched at ``iou_thr``.
        num_objects: Number of objects of each class, integers, shape (C,).
        iou_thr: The least IoU of a true positive, in [0, 1]; 0 for any overlap.

    Returns:
        The errors at the optimal thresholds, and the thresholds, float64, shape (C,). A class
        without a true positive has an error of 1 at each threshold: its threshold, its
        localisation and its share of false positives are NaN.
    """
    num_classes = len(num_objects)
    rows = np.full((4, num_classes), np.nan)
    rows[[0, 3]] = np.where(np.asarray(num_objects) > 0, 1.0, np.nan)
    thresholds = np.full(num_classes, np.nan)
    order = np.lexsort((-matches.scores, matches.labels))
    labels, scores, ious = (a[order] for a in (matches.labels, matches.scores, matches.ious))
    bounds = np.searchsorted(labels, np.arange(num_classes + 1))
    for label, (start, end) in enumerate(itertools.pairwise(bounds)):
        group = slice(start, end)
        hits = ious[group] > 0
        if not hits.any() or not num_objects[label]:
            continue
        # Equal scores are kept or left out together.
        last = np.append(np.diff(scores[group]) != 0, True)
        errors = _errors(
            np.cumsum(hits)[last],
            np.cumsum(~hits)[last],
            np.cumsum(hits * (1 - ious[group]))[last],
            np.full(last.sum(), num_objects[label]),
            iou_thr,
        )
        best = int(np.argmax(errors.total <= errors.total.min() + _TIE))
        thresholds[label] = scores[group][last][best]
        rows[:, label] = [
            errors.total[best],
            errors.localisation[best],
            errors.false_positive[best],
            errors.false_negative[best],
        ]
    return LrpErrors(*rows), thresholds


def above_thresholds(matches: DetectionMatches, thresholds: np.ndarray) -> DetectionMatches:
    """Return the detections whose score reaches their class's threshold; NaN keeps all."""
    return matches.select(~(matches.scores < thresholds[matches.labels]))


def nan_mean(values: np.ndarray) -> float:
    """Return the mean of the values that are not NaN; NaN if all are."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float('nan')


def _errors(
    true_positives: np.ndarray,
    false_positives: np.ndarray,
    offsets: np.ndarray,
    num_objects: np.ndarray,
    iou_thr: float,
) -> LrpErrors:
    """Compute the errors of each entry; ``offsets`` are sums of 1 - IoU over true positives."""
    missed = num_objects - true_positives
    # At a threshold of 1 each match is perfect.
    scale = 1 / (1 - iou_thr) if iou_thr < 1 else 0.0
    with np.errstate(invalid='ignore', divide='ignore'):
        parts = (
            (offsets * scale + false_positives + missed)
            / (true_positives + false_positives + missed),
            offsets / true_positives,
            false_positives / (true_positives + false_positives),
            missed / num_objects,
        )
    return LrpErrors(*(np.where(num_objects > 0, part, np.nan) for part in parts))
