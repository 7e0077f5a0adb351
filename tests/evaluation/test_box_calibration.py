"""Calibrators of final boxes: fits against scipy and scikit-learn, known parameters, files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from calkd_det.errors import ConfigError
from calkd_det.evaluation.box_calibration import (
    BoxCalibration,
    IsotonicScores,
    PlattScores,
    fit_box_calibration,
    from_plain,
    to_plain,
)
from calkd_det.evaluation.box_calibration_hook import read_box_calibration
from calkd_det.evaluation.lrp import above_thresholds, optimal_lrp
from calkd_det.evaluation.matching import DetectionMatches

NAMES = ('cat', 'dog')


def draw(
    seed: int,
    size: int = 400,
    a: tuple[float, ...] = (0.6, 1.5),
    b: tuple[float, ...] = (0.5, -1.0),
) -> tuple[DetectionMatches, np.ndarray]:
    """Draw scores whose precision is a Platt curve of each class, and more objects than hits."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(len(a), size=size)
    scores = rng.beta(1.5, 1.5, size).astype(np.float32).astype(np.float64)
    probability = expit(np.array(a)[labels] * logit(scores) + np.array(b)[labels])
    ious = np.where(rng.random(size) < probability, rng.uniform(0.5, 1, size), 0.0)
    num_objects = np.bincount(labels[ious > 0], minlength=len(a)) + 5
    return DetectionMatches(scores, labels, ious), num_objects


def plain_platt(scores: np.ndarray, targets: np.ndarray, centre: np.ndarray | None) -> np.ndarray:
    """Minimise the cross-entropy, with the prior around ``centre`` if there is one, by BFGS."""
    logits = logit(scores)

    def objective(theta: np.ndarray) -> float:
        z = theta[0] * logits + theta[1]
        value = np.sum(np.logaddexp(0, z) - targets * z)
        if centre is not None:
            value += 0.5 * np.sum(((theta - centre) / [0.5, 1.0]) ** 2)
        return value

    return minimize(objective, [1.0, 0.0], method='BFGS', options=dict(gtol=1e-8)).x


@pytest.mark.parametrize('fit_to', ['iou', 'precision'])
def test_platt_agrees_with_scipy(fit_to: str) -> None:
    for seed in range(20):
        matches, num_objects = draw(seed)
        calibration = fit_box_calibration(matches, num_objects, NAMES, 'platt', fit_to)
        _, thresholds = optimal_lrp(matches, num_objects, 0.0 if fit_to == 'iou' else 0.5)
        kept = above_thresholds(matches, thresholds)
        targets = kept.ious if fit_to == 'iou' else kept.hits.astype(float)
        pooled = plain_platt(kept.scores, targets, None)
        for label, found in enumerate(calibration.calibrators):
            rows = kept.labels == label
            expected = plain_platt(kept.scores[rows], targets[rows], pooled)
            assert [found.a, found.b] == pytest.approx(expected, abs=1e-4)
            assert calibration.num_boxes[label] == rows.sum()


def test_platt_without_its_prior_agrees_with_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('calkd_det.evaluation.box_calibration._PRIOR_STD', np.array([1e6, 1e6]))
    for seed in range(10):
        matches, num_objects = draw(seed)
        calibration = fit_box_calibration(matches, num_objects, NAMES, 'platt', 'precision')
        kept = above_thresholds(matches, calibration.raw_thresholds)
        for label, found in enumerate(calibration.calibrators):
            rows = kept.labels == label
            regression = LogisticRegression(C=np.inf, solver='newton-cholesky', tol=1e-9)
            regression.fit(logit(kept.scores[rows])[:, None], kept.hits[rows])
            expected = [regression.coef_[0, 0], regression.intercept_[0]]
            assert [found.a, found.b] == pytest.approx(expected, abs=1e-4)


def test_known_parameters_are_found() -> None:
    matches, num_objects = draw(1, size=100_000)
    found = fit_box_calibration(matches, num_objects, NAMES, 'platt', 'precision').calibrators
    assert [found[0].a, found[0].b] == pytest.approx([0.6, 0.5], abs=0.05)
    assert [found[1].a, found[1].b] == pytest.approx([1.5, -1.0], abs=0.05)


def test_isotonic_agrees_with_scikit_learn() -> None:
    matches, num_objects = draw(2)
    calibration = fit_box_calibration(matches, num_objects, NAMES, 'isotonic', 'iou')
    kept = above_thresholds(matches, calibration.raw_thresholds)
    for label, found in enumerate(calibration.calibrators):
        rows = kept.labels == label
        expected = IsotonicRegression(y_min=0, y_max=1, out_of_bounds='clip')
        expected.fit(kept.scores[rows], kept.ious[rows])
        scores = np.linspace(calibration.raw_thresholds[label], 1, 101)
        mixed = 0.999 * expected.predict(scores) + 0.001 * scores
        assert found(scores) == pytest.approx(mixed, abs=1e-12)


@pytest.mark.parametrize('method', ['platt', 'isotonic'])
def test_rare_classes_lean_on_all(method: str) -> None:
    matches, _ = draw(3)
    labels = np.where(np.arange(len(matches)) < 4, 1, 0)
    rare = DetectionMatches(matches.scores, labels, matches.ious)
    names = ('common', 'rare', 'never seen')
    num_objects = np.array([400, 6, 0])
    common, few, none = fit_box_calibration(rare, num_objects, names, method, 'iou').calibrators
    scores = np.linspace(0.05, 0.95, 19)
    assert none(scores) == pytest.approx(common(scores), abs=0.02)
    assert few(scores) == pytest.approx(common(scores), abs=0.35)
    assert np.isfinite(few(np.array([0.0, 1.0]))).all()


def test_separable_classes_stay_finite() -> None:
    scores = np.array([0.9, 0.8, 0.2, 0.1])
    matches = DetectionMatches(scores, np.zeros(4, int), np.array([1.0, 1.0, 0.0, 0.0]))
    (found,) = fit_box_calibration(
        matches, np.array([9]), ('cat',), 'platt', 'precision'
    ).calibrators
    assert 0 < found.a <= 100
    assert np.all(np.diff(found(np.linspace(0, 1, 11))) >= 0)


def test_thresholds_are_chosen_again_for_calibrated_scores() -> None:
    matches, num_objects = draw(4)
    for method in ('platt', 'isotonic'):
        calibration = fit_box_calibration(matches, num_objects, NAMES, method, 'iou')
        scores = calibration.calibrate(matches.scores, matches.labels)
        assert scores.dtype == np.float32
        new = DetectionMatches(scores.astype(float), matches.labels, matches.ious)
        _, expected = optimal_lrp(new, num_objects, 0.0)
        assert np.array_equal(calibration.thresholds, expected)
        kept = calibration.keeps(matches.scores, scores, matches.labels)
        # The order is kept, and so is the best cut.
        _, raw = optimal_lrp(matches, num_objects, 0.0)
        assert np.array_equal(kept, matches.scores >= raw[matches.labels])


@pytest.mark.parametrize('method', ['platt', 'isotonic'])
def test_the_order_of_a_class_is_kept(method: str) -> None:
    for seed in range(5):
        matches, num_objects = draw(seed)
        calibration = fit_box_calibration(matches, num_objects, NAMES, method, 'iou')
        scores = np.linspace(0.001, 0.999, 999)
        for label in range(2):
            found = calibration.calibrate(scores, np.full(len(scores), label))
            assert (np.diff(found) > 0).all()


@pytest.mark.parametrize('method', ['platt', 'isotonic'])
def test_a_file_gives_the_same_calibration(method: str, tmp_path: Path) -> None:
    matches, num_objects = draw(5)
    names = ('cat', 'dog', 'unseen')
    calibration = fit_box_calibration(matches, np.append(num_objects, 0), names, method, 'iou')
    path = tmp_path / 'boxes.json'
    path.write_text(json.dumps(to_plain(calibration), allow_nan=False))
    read = read_box_calibration(path)
    assert read.calibrators == calibration.calibrators
    assert np.array_equal(read.thresholds, calibration.thresholds, equal_nan=True)
    assert np.array_equal(read.raw_thresholds, calibration.raw_thresholds, equal_nan=True)
    turned = read.in_order_of(names[::-1], 'the file')
    scores = calibration.calibrate(matches.scores, matches.labels)
    assert np.array_equal(turned.calibrate(matches.scores, 2 - matches.labels), scores)
    with pytest.raises(ConfigError, match=r"the file lacks the class 'horse' .* it has: cat, dog"):
        read.in_order_of(('cat', 'horse'), 'the file')


def test_scores_at_the_ends_stay_numbers() -> None:
    ends = np.array([0.0, 2.0**-30, 1.0])
    assert np.isfinite(PlattScores(3.0, 1.0)(ends)).all()
    expected = [0.999 * 0.1, 0.999 * 0.1, 0.999 * 0.9 + 0.001]
    assert IsotonicScores((0.2, 0.8), (0.1, 0.9))(ends) == pytest.approx(expected)


def test_without_scikit_learn_isotonic_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'sklearn.isotonic', None)
    matches, num_objects = draw(6)
    with pytest.raises(ConfigError, match='needs scikit-learn: pip install scikit-learn, or use'):
        fit_box_calibration(matches, num_objects, NAMES, 'isotonic', 'iou')
    assert isinstance(fit_box_calibration(matches, num_objects, NAMES), BoxCalibration)


def test_nothing_to_fit_to() -> None:
    matches = DetectionMatches(np.array([0.5]), np.array([0]), np.array([0.0]))
    with pytest.raises(ConfigError, match='no box of the detector matches an object'):
        fit_box_calibration(matches, np.array([3, 3]), NAMES)


PLATT = dict(
    method='platt',
    fit_to='iou',
    score_thresholds=dict(cat=0.5),
    classes=[{'class': 'cat', 'num_boxes': 3, 'raw_score_threshold': None, 'a': 1.0, 'b': 0.0}],
)


@pytest.mark.parametrize(
    'changes',
    [
        dict(method='temperature'),
        dict(fit_to='recall'),
        dict(score_thresholds={}),
        dict(classes=[]),
        dict(classes=[{**PLATT['classes'][0], 'a': 0}]),
        dict(classes=[{**PLATT['classes'][0], 'b': float('nan')}]),
        dict(method='isotonic'),
        dict(method='isotonic', classes=[{**PLATT['classes'][0], 'x': [0, 1], 'y': [1, 0]}]),
        dict(method='isotonic', classes=[{**PLATT['classes'][0], 'x': [0, 0], 'y': [0, 1]}]),
    ],
    ids=(
        'method',
        'quality',
        'no threshold',
        'no class',
        'slope',
        'shift',
        'no polyline',
        'falling',
        'no width',
    ),
)
def test_content_that_is_no_calibration(changes: dict[str, Any]) -> None:
    assert from_plain(PLATT, 'the file').class_names == ('cat',)
    with pytest.raises(ConfigError, match='the file is no calibration of final boxes'):
        from_plain(PLATT | changes, 'the file')


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, r"there is no file '.*'; write it by calkd calibrate --target boxes"),
        ('{', 'cannot read'),
    ],
    ids=['missing', 'no JSON'],
)
def test_files_that_cannot_be_read(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / 'boxes.json'
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=rf'BoxCalibrationHook\.parameters: {message}'):
        read_box_calibration(path)
    with pytest.raises(ConfigError, match='must be the path of a JSON file, but is 3'):
        read_box_calibration(3)
