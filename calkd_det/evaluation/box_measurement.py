"""Calibration and LRP errors of final boxes, of all classes and of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from terminaltables import AsciiTable

from calkd_det.calibration.reliability import Reliability, reliability_from_confidences
from calkd_det.evaluation.localisation_aware import (
    LAECE_BINS,
    class_absolute_errors,
    class_binned_errors,
    laace,
    laece,
)
from calkd_det.evaluation.lrp import (
    LrpErrors,
    above_thresholds,
    lrp_errors,
    nan_mean,
    optimal_lrp,
)
from calkd_det.evaluation.matching import ImageDetections, count_objects, match_detections
from calkd_det.evaluation.oce import object_errors
from calkd_det.evaluation.settings import CalibrationSettings


@dataclass(frozen=True)
class ClassResults:
    """Results of each class.

    Attributes:
        names: The C classes.
        columns: Values by their names, each of shape (C,), NaN where they are not defined.
    """

    names: tuple[str, ...]
    columns: dict[str, np.ndarray]

    def rows(self) -> list[dict[str, Any]]:
        """Return a dict for each class, with integers as such and None for NaN."""
        return [
            {'class': name} | {key: plain_number(column[i]) for key, column in self.columns.items()}
            for i, name in enumerate(self.names)
        ]

    def table(self) -> str:
        """Return a table for the log, with three digits."""
        rows = [
            [name, *('' if v is None else f'{v:.3f}' if isinstance(v, float) else v for v in rest)]
            for name, *rest in (row.values() for row in self.rows())
        ]
        table = AsciiTable([['class', *self.columns], *rows])
        table.inner_footing_row_border = False
        return table.table


@dataclass(frozen=True)
class BoxMeasurement:
    """Results of an evaluation of final boxes.

    Attributes:
        figures: Of all classes, by their names, NaN where they are not defined.
        classes: The same of each class.
        reliability: Bins of the D-ECE; None without a detection.
        optimal_thresholds: The LRP-optimal score threshold of each class on these images, (C,),
            NaN for a class without a true positive.
        num_detections: Number of boxes of the D-ECE.
    """

    figures: dict[str, float]
    classes: ClassResults
    reliability: Reliability | None
    optimal_thresholds: np.ndarray
    num_detections: int


def measure_boxes(
    coco: COCO,
    images: Sequence[ImageDetections],
    category_ids: Sequence[int],
    class_names: Sequence[str],
    settings: CalibrationSettings,
    given_thresholds: np.ndarray | None = None,
) -> BoxMeasurement:
    """Match boxes once for each IoU threshold and compute all errors.

    Args:
        coco: The ground truth.
        images: The boxes of the images that are evaluated.
        category_ids: The category id of each label.
        class_names: The name of each label.
        settings: What to measure.
        given_thresholds: With ``score_thr='lrp'``, the score threshold of each class, (C,), NaN to
            keep all; None for the thresholds that are optimal on these images.
    """
    iou_thrs = (0.0, settings.iou_thr, settings.lrp_iou_thr)
    distinct = sorted(set(iou_thrs))
    found = dict(zip(distinct, match_detections(coco, images, category_ids, distinct)))
    all_matches = [found[iou_thr] for iou_thr in iou_thrs]
    num_objects = count_objects(coco, images, category_ids)
    optimal, optimal_thresholds = optimal_lrp(all_matches[2], num_objects, settings.lrp_iou_thr)
    if settings.score_thr != 'lrp':
        thresholds = np.full(len(category_ids), settings.score_thr)
    else:
        thresholds = optimal_thresholds if given_thresholds is None else given_thresholds
    overlapping, matched, for_lrp = (above_thresholds(whole, thresholds) for whole in all_matches)
    errors = lrp_errors(for_lrp, num_objects, settings.lrp_iou_thr)
    by_object, object_labels = object_errors(
        coco,
        [image.select(~(image.scores < thresholds[image.labels])) for image in images],
        category_ids,
    )
    lrp_columns = _lrp_columns('LRP', errors, settings) | _lrp_columns('oLRP', optimal, settings)

    reliability = None
    if len(matched):
        reliability = reliability_from_confidences(
            torch.from_numpy(matched.scores),
            torch.from_numpy(matched.hits),
            n_bins=settings.num_bins,
        )
    scope, size = overlap_name(settings.iou_thr), len(category_ids)
    figures = {
        f'D-ECE_{scope}': math.nan if reliability is None else reliability.ece,
        f'D-ECE_over_{scope}': math.nan if reliability is None else reliability.ece_over,
        f'D-ECE_under_{scope}': math.nan if reliability is None else reliability.ece_under,
        f'LaECE_{scope}': laece(matched),
        'LaECE_0': laece(overlapping),
        'LaACE_0': laace(overlapping),
        **{name: nan_mean(column) for name, column in lrp_columns.items()},
        'OCE': float(by_object.mean()) if len(by_object) else math.nan,
        # mmengine's JSON log of a test drops integers.
        'num_detections': float(len(matched)),
    }
    columns = {
        'num_objects': num_objects,
        'num_detections': np.bincount(matched.labels, minlength=size),
        'score_thr': thresholds,
        f'D-ECE_{scope}': class_binned_errors(matched, matched.hits, settings.num_bins, size),
        f'LaECE_{scope}': class_binned_errors(matched, matched.ious, LAECE_BINS, size),
        'LaECE_0': class_binned_errors(overlapping, overlapping.ious, LAECE_BINS, size),
        'LaACE_0': class_absolute_errors(overlapping, size),
        **lrp_columns,
        'OCE': _means_by_label(by_object, object_labels, size),
    }
    classes = ClassResults(tuple(class_names), columns)
    return BoxMeasurement(figures, classes, reliability, optimal_thresholds, len(matched))


def _means_by_label(values: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    counts = np.bincount(labels, minlength=num_classes)
    sums = np.bincount(labels, values, minlength=num_classes)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def overlap_name(iou_thr: float) -> str:
    """Return how the name of a figure tells its IoU threshold: ``IoU50``, or ``0`` for any."""
    return f'IoU{100 * iou_thr:g}' if iou_thr else '0'


def _lrp_columns(
    name: str, errors: LrpErrors, settings: CalibrationSettings
) -> dict[str, np.ndarray]:
    scope = overlap_name(settings.lrp_iou_thr)
    return {
        f'{name}_{scope}': errors.total,
        f'{name}_loc_{scope}': errors.localisation,
        f'{name}_FP_{scope}': errors.false_positive,
        f'{name}_FN_{scope}': errors.false_negative,
    }


def plain_number(value: Any) -> int | float | None:
    """Return a number as Python's own, None for NaN."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and math.isnan(value) else value
