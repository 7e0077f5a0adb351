"""LRP errors against plain float64 loops that match anew at each threshold."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from mmdet.datasets.api_wrappers import COCO
from plain_calibration import (
    CATEGORY_IDS,
    annotation_file,
    plain_lrp,
    plain_optimal_threshold,
    random_case,
)

from calkd_det.evaluation.lrp import above_thresholds, lrp_errors, nan_mean, optimal_lrp
from calkd_det.evaluation.matching import DetectionMatches, count_objects, match_detections

PARTS = ('total', 'localisation', 'false_positive', 'false_negative')


@pytest.mark.parametrize('iou_thr', [0.0, 0.1, 0.5])
def test_errors_and_thresholds_agree_with_plain_loops(tmp_path: Path, iou_thr: float) -> None:
    num_thresholds = num_without = 0
    for seed in range(40):
        annotations, images = random_case(seed)
        coco = COCO(annotation_file(tmp_path / 'case.json', annotations, len(images)))
        (matches,) = match_detections(coco, images, CATEGORY_IDS, [iou_thr])
        num_objects = count_objects(coco, images, CATEGORY_IDS)
        errors, thresholds = optimal_lrp(matches, num_objects, iou_thr)
        plain = lrp_errors(matches, num_objects, iou_thr)
        at_thresholds = lrp_errors(above_thresholds(matches, thresholds), num_objects, iou_thr)
        for label in range(len(CATEGORY_IDS)):
            expected = plain_optimal_threshold(annotations, images, label, iou_thr)
            whole = plain_lrp(annotations, images, label, iou_thr, 0.0)
            assert rows(plain, label) == pytest.approx(whole or [math.nan] * 4, nan_ok=True)
            if expected is None:
                assert math.isnan(thresholds[label])
                num_without += 1
                least = (1, math.nan, math.nan, 1) if whole else [math.nan] * 4
                assert rows(errors, label) == pytest.approx(least, nan_ok=True)
                continue
            num_thresholds += 1
            assert thresholds[label] == expected
            least = plain_lrp(annotations, images, label, iou_thr, expected)
            assert rows(errors, label) == pytest.approx(least, abs=1e-12, nan_ok=True)
            assert rows(at_thresholds, label) == pytest.approx(least, abs=1e-12, nan_ok=True)
    assert num_thresholds > 50
    assert num_without > 5


def rows(errors: object, label: int) -> list[float]:
    return [float(getattr(errors, name)[label]) for name in PARTS]


def test_equal_scores_are_kept_together() -> None:
    # The first of two equal scores alone would have the least error.
    matches = DetectionMatches(np.array([0.5, 0.5]), np.zeros(2, int), np.array([1.0, 0.0]))
    errors, thresholds = optimal_lrp(matches, np.array([1]), 0.5)
    assert thresholds.tolist() == [0.5]
    assert errors.total.tolist() == [0.5]


def test_of_equal_errors_the_highest_threshold_is_taken() -> None:
    # One hit of three objects: 2/3. With a miss and a second hit: (0 + 1 + 1) / 4 = 1/2, twice.
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    ious = np.array([1.0, 1.0, 0.0, 0.0, 1.0])
    errors, thresholds = optimal_lrp(
        DetectionMatches(scores, np.zeros(5, int), ious), np.array([3]), 0.5
    )
    assert errors.total.tolist() == pytest.approx([1 / 3])
    assert thresholds.tolist() == [0.8]
    ious = np.array([0.5, 0.0, 0.5, 0.0, 0.5])
    _, thresholds = optimal_lrp(
        DetectionMatches(scores, np.zeros(5, int), ious), np.array([3]), 0.5
    )
    assert thresholds.tolist() == [0.9]  # each threshold has an error of 1


def test_a_class_without_objects_is_in_no_mean() -> None:
    matches = DetectionMatches(np.array([0.9, 0.8]), np.array([0, 1]), np.array([1.0, 0.0]))
    errors = lrp_errors(matches, np.array([1, 0]), 0.5)
    assert [nan_mean(getattr(errors, name)) for name in PARTS] == [0, 0, 0, 0]


def test_a_threshold_of_one_has_no_localisation_error() -> None:
    matches = DetectionMatches(np.array([0.9]), np.array([0]), np.array([1.0]))
    assert lrp_errors(matches, np.array([1]), 1.0).total.tolist() == [0.0]
