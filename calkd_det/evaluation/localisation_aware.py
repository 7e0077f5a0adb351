"""Calibration errors that compare a box's confidence with its IoU: LaECE and LaACE."""

from __future__ import annotations

import math

import numpy as np

from calkd_det.evaluation.matching import DetectionMatches

LAECE_BINS = 25  # as in both papers


def laece(matches: DetectionMatches) -> float:
    r"""Compute the localisation-aware expected calibration error (LaECE).

    It is the mean over classes of

    .. math::
        \sum_j \frac{|D_j|}{|D|} \left| \bar p_j - \mathrm{precision}_j \cdot \overline{IoU}_j
        \right|

    over :data:`LAECE_BINS` equal-width bins ``(lower, upper]`` of the class's detections. The mean
    IoU is taken over the bin's true positives. Classes without a detection are left out of the
    mean. (Oksuz et al., `Towards Building Self-Aware Object Detectors via Reliable Uncertainty
    Quantification and Calibration <https://arxiv.org/abs/2307.00934>`_, CVPR 2023.) With matches at
    any overlap it is LaECE_0 (Kuzucu et al., `On Calibration of Object Detectors: Pitfalls,
    Evaluation and Baselines <https://arxiv.org/abs/2405.20459>`_, ECCV 2024).

    Args:
        matches: The matched detections.

    Returns:
        A value in [0, 1], or NaN without detections.

    Example:
        >>> scores, ious = np.array([0.9, 0.9]), np.array([0.7, 0.0])
        >>> round(laece(DetectionMatches(scores, np.array([0, 0]), ious)), 4)
        0.55
    """
    # precision * mean IoU = sum of IoU / |D_j|, as false positives have IoU 0.
    return _mean(class_binned_errors(matches, matches.ious, LAECE_BINS))


def laace(matches: DetectionMatches) -> float:
    """Compute the localisation-aware adaptive calibration error (LaACE): a bin for each detection.

    It is the mean over classes of the mean absolute difference of confidence and IoU. The IoU of a
    false positive is 0. Classes without a detection are left out of the mean. With matches at any
    overlap it is LaACE_0 (Kuzucu et al., `On Calibration of Object Detectors: Pitfalls, Evaluation
    and Baselines <https://arxiv.org/abs/2405.20459>`_, ECCV 2024).

    Returns:
        A value in [0, 1], or NaN without detections.

    Example:
        >>> scores, ious = np.array([0.9, 0.9]), np.array([0.7, 0.0])
        >>> round(laace(DetectionMatches(scores, np.array([0, 0]), ious)), 4)
        0.55
    """
    return _mean(class_absolute_errors(matches))


def class_binned_errors(
    matches: DetectionMatches, targets: np.ndarray, num_bins: int, num_classes: int = 0
) -> np.ndarray:
    """Compute the expected calibration error of each class in equal-width bins.

    Args:
        matches: The detections. Their scores are the confidence.
        targets: What the confidence is compared with, (N,), in [0, 1]: IoU for the LaECE, hits for
            the D-ECE of a class.
        num_bins: Number of bins ``(lower, upper]``; the first one also holds a score of 0.
        num_classes: The least number C of classes of the result.

    Returns:
        float64, shape (C,), NaN for a class without a detection.
    """
    bins = np.searchsorted(np.arange(1, num_bins) / num_bins, matches.scores, side='left')
    num_classes = max(num_classes, int(matches.labels.max(initial=-1)) + 1)
    # |D_j| times the mean gap of a bin is the sum of its gaps.
    gaps = np.bincount(
        matches.labels * num_bins + bins,
        weights=matches.scores - targets,
        minlength=num_classes * num_bins,
    )
    return _over_counts(np.abs(gaps.reshape(num_classes, num_bins)).sum(axis=1), matches)


def class_absolute_errors(matches: DetectionMatches, num_classes: int = 0) -> np.ndarray:
    """Compute the LaACE of each class, float64, shape (C,), NaN without a detection."""
    num_classes = max(num_classes, int(matches.labels.max(initial=-1)) + 1)
    gaps = np.abs(matches.scores - matches.ious)
    return _over_counts(np.bincount(matches.labels, gaps, minlength=num_classes), matches)


def _over_counts(sums: np.ndarray, matches: DetectionMatches) -> np.ndarray:
    counts = np.bincount(matches.labels, minlength=len(sums))
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _mean(errors: np.ndarray) -> float:
    known = errors[~np.isnan(errors)].tolist()
    return math.fsum(known) / len(known) if known else math.nan
