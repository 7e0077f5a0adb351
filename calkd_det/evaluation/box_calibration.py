"""Post-hoc calibration of the scores of final boxes, class by class.

Kuzucu et al., `On Calibration of Object Detectors: Pitfalls, Evaluation and Baselines
<https://arxiv.org/abs/2405.20459>`_, ECCV 2024: a calibrator of each class is fitted to the boxes
above the LRP-optimal threshold of the class, and the threshold is chosen again for the calibrated
scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy.special import expit, logit

from calkd_det.calibration.newton import minimise_convex
from calkd_det.errors import ConfigError
from calkd_det.evaluation.box_measurement import plain_number
from calkd_det.evaluation.lrp import above_thresholds, optimal_lrp
from calkd_det.evaluation.matching import DetectionMatches

Method = Literal['platt', 'isotonic']
# What a calibrated score is: the expected IoU of a box with its object, where a false positive has
# IoU 0, or the probability that it is a true positive at IoU >= 0.5.
FitTo = Literal['iou', 'precision']
IOU_THRESHOLDS: dict[str, float] = {'iou': 0.0, 'precision': 0.5}

# The logit of a score of 0 or 1 would be infinite. float32 has no value between 1 - 2^-24 and 1.
_SMALLEST_SCORE = 2.0**-24
# A slope of 0 would give all boxes of a class one score.
_SLOPES = (0.01, 100.0)
_SHIFTS = (-50.0, 50.0)
# Standard deviations of a class's slope and shift around those of all classes.
_PRIOR_STD = np.array([0.5, 1.0])
# Without it, boxes of equal calibrated scores would lower the AP.
_MIXED_IN = 1e-3
# A class with fewer boxes takes the isotonic regression of all classes.
_FEWEST_BOXES = 20


@dataclass(frozen=True)
class PlattScores:
    """Calibrated score sigmoid(a · logit(score) + b), which keeps the order of scores.

    Attributes:
        a: Slope, > 0.
        b: Shift of the logit.
    """

    a: float
    b: float

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        clipped = np.clip(scores, _SMALLEST_SCORE, 1 - _SMALLEST_SCORE)
        return expit(self.a * logit(clipped) + self.b)


@dataclass(frozen=True)
class IsotonicScores:
    """Calibrated score by a rising polyline with flat parts.

    A thousandth of the score is mixed in, so that the order of scores is kept on flat parts.

    Attributes:
        x: Scores of its corners, rising.
        y: Calibrated scores there, not falling; constant beyond the ends.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        return (1 - _MIXED_IN) * np.interp(scores, self.x, self.y) + _MIXED_IN * scores


@dataclass(frozen=True)
class BoxCalibration:
    """Calibrators and score thresholds of the final boxes of a detector.

    Attributes:
        class_names: The C classes.
        method: The kind of the calibrators.
        fit_to: What a calibrated score is.
        calibrators: One of each class.
        num_boxes: Number of boxes that each was fitted to.
        raw_thresholds: LRP-optimal thresholds of scores before calibration, (C,), NaN for none.
        thresholds: The same for calibrated scores.
    """

    class_names: tuple[str, ...]
    method: Method
    fit_to: FitTo
    calibrators: tuple[PlattScores | IsotonicScores, ...]
    num_boxes: tuple[int, ...]
    raw_thresholds: np.ndarray
    thresholds: np.ndarray

    def calibrate(self, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return calibrated scores, float32, of scores (N,) and labels (N,)."""
        calibrated = np.asarray(scores, dtype=np.float64).copy()
        for label in np.unique(labels):
            rows = labels == label
            calibrated[rows] = self.calibrators[label](calibrated[rows])
        return calibrated.astype(np.float32)

    def keeps(self, scores: np.ndarray, calibrated: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return whether boxes reach both thresholds of their class, bool, (N,)."""
        return ~((scores < self.raw_thresholds[labels]) | (calibrated < self.thresholds[labels]))

    def in_order_of(self, class_names: Sequence[str], source: str) -> BoxCalibration:
        """Return the calibration of classes in another order.

        Raises:
            ConfigError: A class is missing. ``source`` names where the calibration comes from.
        """
        missing = [name for name in class_names if name not in self.class_names]
        if missing:
            raise ConfigError(
                f'{source} lacks the class {missing[0]!r} of the detector; it has: '
                f'{", ".join(self.class_names)}'
            )
        order = [self.class_names.index(name) for name in class_names]
        return replace(
            self,
            class_names=tuple(class_names),
            calibrators=tuple(self.calibrators[i] for i in order),
            num_boxes=tuple(self.num_boxes[i] for i in order),
            raw_thresholds=self.raw_thresholds[order],
            thresholds=self.thresholds[order],
        )


def fit_box_calibration(
    matches: DetectionMatches,
    num_objects: np.ndarray,
    class_names: Sequence[str],
    method: Method = 'platt',
    fit_to: FitTo = 'iou',
) -> BoxCalibration:
    """Fit a calibrator of each class to the boxes above its LRP-optimal threshold.

    Platt scaling minimises the cross-entropy with the IoU or the hits as targets. A normal prior
    around the parameters of all classes keeps those of rare classes finite; it hardly matters from
    a hundred boxes on. Isotonic regression is scikit-learn's; a class of fewer than 20 boxes takes
    that of all classes. Both keep the order of the boxes of a class, also of those below its
    threshold.

    Args:
        matches: All boxes, matched at ``IOU_THRESHOLDS[fit_to]``.
        num_objects: Number of objects of each class, (C,).
        class_names: The C classes.
        method: ``'platt'`` or ``'isotonic'``.
        fit_to: ``'iou'`` or ``'precision'``.

    Raises:
        ConfigError: There is no true positive, or scikit-learn is missing for ``'isotonic'``.
    """
    if not matches.hits.any():
        raise ConfigError(
            'no box of the detector matches an object: there is nothing to fit. Are its weights '
            'those of a trained detector, and do the annotations belong to the images?'
        )
    iou_thr = IOU_THRESHOLDS[fit_to]
    _, raw_thresholds = optimal_lrp(matches, num_objects, iou_thr)
    fitted = above_thresholds(matches, raw_thresholds)
    targets = fitted.ious if fit_to == 'iou' else fitted.hits.astype(np.float64)
    fit = _fit_platt if method == 'platt' else _fit_isotonic
    calibration = BoxCalibration(
        tuple(class_names),
        method,
        fit_to,
        fit(fitted.scores, targets, fitted.labels, len(class_names)),
        tuple(np.bincount(fitted.labels, minlength=len(class_names)).tolist()),
        raw_thresholds,
        raw_thresholds,
    )
    calibrated = calibration.calibrate(matches.scores, matches.labels).astype(np.float64)
    matches = replace(matches, scores=calibrated)
    _, thresholds = optimal_lrp(matches, num_objects, iou_thr)
    return replace(calibration, thresholds=thresholds)


def to_plain(calibration: BoxCalibration) -> dict[str, Any]:
    """Return values of JSON that :func:`from_plain` reads."""
    classes = []
    for name, calibrator, count, threshold in zip(
        calibration.class_names,
        calibration.calibrators,
        calibration.num_boxes,
        calibration.raw_thresholds.tolist(),
    ):
        values = {key: _listed(value) for key, value in vars(calibrator).items()}
        classes.append(
            {'class': name, 'num_boxes': count, 'raw_score_threshold': plain_number(threshold)}
            | values
        )
    return {
        'method': calibration.method,
        'fit_to': calibration.fit_to,
        'lrp_iou_thr': IOU_THRESHOLDS[calibration.fit_to],
        'score_thresholds': dict(
            zip(calibration.class_names, map(plain_number, calibration.thresholds.tolist()))
        ),
        'classes': classes,
    }


def from_plain(content: Any, source: str) -> BoxCalibration:
    """Return the calibration of values of :func:`to_plain`.

    Raises:
        ConfigError: They are none. ``source`` names where they come from.
    """
    kinds = {'platt': PlattScores, 'isotonic': IsotonicScores}
    try:
        classes, kind = content['classes'], kinds[content['method']]
        names = tuple(row['class'] for row in classes)
        calibration = BoxCalibration(
            names,
            content['method'],
            content['fit_to'],
            tuple(_calibrator(kind, row) for row in classes),
            tuple(row['num_boxes'] for row in classes),
            np.array([_or_nan(row['raw_score_threshold']) for row in classes]),
            np.array([_or_nan(content['score_thresholds'][name]) for name in names]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f'{source} is no calibration of final boxes ({type(error).__name__}: {error}); write '
            'it by calkd calibrate --target boxes'
        ) from error
    if not classes or content['fit_to'] not in IOU_THRESHOLDS:
        raise ConfigError(f'{source} is no calibration of final boxes: it is incomplete')
    return calibration


def _calibrator(kind: type, row: Mapping[str, Any]) -> PlattScores | IsotonicScores:
    if kind is PlattScores:
        a, b = float(row['a']), float(row['b'])
        if not (a > 0 and math.isfinite(a) and math.isfinite(b)):
            raise ValueError(f'a = {a} and b = {b} of {row["class"]}')
        return PlattScores(a, b)
    x, y = (tuple(float(value) for value in row[key]) for key in ('x', 'y'))
    if not x or len(x) != len(y) or any(np.diff(x) <= 0) or any(np.diff(y) < 0):
        raise ValueError(f'the polyline of {row["class"]} does not rise')
    return IsotonicScores(x, y)


def _fit_platt(
    scores: np.ndarray, targets: np.ndarray, labels: np.ndarray, num_classes: int
) -> tuple[PlattScores, ...]:
    logits = logit(np.clip(scores, _SMALLEST_SCORE, 1 - _SMALLEST_SCORE))

    def evaluate(theta: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return cross-entropy, gradient and Hessian of groups with parameters (P, 2)."""
        z = theta[groups, 0] * logits + theta[groups, 1]
        residual, curvature = expit(z) - targets, expit(z) * expit(-z)

        def summed(values: np.ndarray) -> np.ndarray:
            return np.bincount(groups, values, minlength=len(theta))

        mixed = summed(curvature * logits)
        hessian = np.array([[summed(curvature * logits**2), mixed], [mixed, summed(curvature)]])
        return (
            summed(np.logaddexp(0, z) - targets * z),
            np.stack([summed(residual * logits), summed(residual)], axis=1),
            hessian.transpose(2, 0, 1),
        )

    def penalised(theta: np.ndarray) -> tuple[np.ndarray, ...]:
        value, gradient, hessian = evaluate(theta, labels)
        offset = (theta - pooled) / _PRIOR_STD
        return (
            value + 0.5 * (offset**2).sum(axis=1),
            gradient + offset / _PRIOR_STD,
            hessian + np.diag(1 / _PRIOR_STD**2),
        )

    lower, upper = (np.array(side) for side in zip(_SLOPES, _SHIFTS))
    one_group = np.zeros(len(labels), dtype=np.int64)
    pooled = minimise_convex(
        lambda theta: evaluate(theta, one_group), np.array([[1.0, 0.0]]), lower, upper
    )
    theta = minimise_convex(penalised, np.repeat(pooled, num_classes, axis=0), lower, upper)
    return tuple(PlattScores(a, b) for a, b in theta.tolist())


def _fit_isotonic(
    scores: np.ndarray, targets: np.ndarray, labels: np.ndarray, num_classes: int
) -> tuple[IsotonicScores, ...]:
    try:
        from sklearn.isotonic import IsotonicRegression
    except ImportError as error:
        raise ConfigError(
            'isotonic regression needs scikit-learn: pip install scikit-learn, or use Platt '
            'scaling (--method platt)'
        ) from error

    def fit(rows: np.ndarray) -> IsotonicScores:
        regression = IsotonicRegression(y_min=0, y_max=1, out_of_bounds='clip')
        regression.fit(scores[rows], targets[rows])
        x, y = regression.X_thresholds_.tolist(), regression.y_thresholds_.tolist()
        # Nothing was fitted below the threshold: the calibrated score falls to 0 with the score.
        below = [0.0] if x[0] > 0 else []
        return IsotonicScores((*below, *x), (*below, *y))

    all_classes = fit(np.ones(len(scores), dtype=bool))
    groups = (labels == label for label in range(num_classes))
    return tuple(fit(rows) if rows.sum() >= _FEWEST_BOXES else all_classes for rows in groups)


def _listed(value: float | tuple[float, ...]) -> float | list[float]:
    return list(value) if isinstance(value, tuple) else value


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)
