"""Calibration errors that compare a box's confidence with its IoU: LaECE and LaACE."""

from __future__ import annotations

import math
from collections.abc import Callable

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
    inner_edges = np.arange(1, LAECE_BINS) / LAECE_BINS

    def class_error(scores: np.ndarray, ious: np.ndarray) -> float:
        bins = np.searchsorted(inner_edges, scores, side='left')
        # precision * mean IoU = sum of IoU / |D_j|, as false positives have IoU 0; |D_j| cancels.
        return float(np.abs(np.bincount(bins, weights=scores - ious)).sum() / len(scores))

    return _class_mean(matches, class_error)


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
    return _class_mean(matches, lambda scores, ious: float(np.abs(scores - ious).mean()))


def _class_mean(
    matches: DetectionMatches, class_error: Callable[[np.ndarray, np.ndarray], float]
) -> float:
    errors = []
    for label in np.unique(matches.labels):
        chosen = matches.labels == label
        errors.append(class_error(matches.scores[chosen], matches.ious[chosen]))
    return math.fsum(errors) / len(errors) if errors else math.nan
