"""Analysis of collected samples: the fitted temperature, and the errors before and after."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from calkd_det.calibration import (
    ClassTemperatureFit,
    ClassTemperatureScaling,
    Reliability,
    TemperatureAccumulator,
    TemperatureFit,
    brier_score,
    negative_log_likelihood,
    reliability_from_confidences,
)
from calkd_det.calibration.reliability import top_label
from calkd_det.calibration.scores import class_scores
from calkd_det.errors import TeacherError
from calkd_det.knowledge import Activation
from calkd_det.measurement.calibrators import CalibratorComparison, compare_calibrators
from calkd_det.measurement.class_table import ClassCalibration, class_calibration
from calkd_det.measurement.collect import SampleStore
from calkd_det.measurement.fewer_classes import student_labels

NUM_BINS = 15
DISTILLATION = 'distillation'
OWN_TRAINING = 'own_training'  # samples of distillation of images that the teacher was trained on

# Sets of samples that together are those of distillation, by their names for a sentence.
_PARTS = {'matched': 'queries with an object', 'rest': 'queries without an object'}

# Two temperatures disagree if their intervals do not overlap and they differ by this factor.
DISAGREEMENT_RATIO = 1.25

METRICS = {
    'nll': 'NLL, negative log-likelihood, nats',
    'ece': f'ECE, top-label, {NUM_BINS} equal-width bins',
    'ece_over': 'ECE_o, its over-confident part',
    'ece_under': 'ECE_u, its under-confident part',
    'mce': f'MCE, top-label, {NUM_BINS} equal-width bins',
    'ace': f'ACE, top-label, {NUM_BINS} equal-mass bins',
    'brier': 'Brier score, summed over classes',
    'mean_confidence': 'mean confidence, top-label',
    'mean_accuracy': 'accuracy, top-label',
}


@dataclass(frozen=True)
class Measurement:
    """Errors of a set of samples at one temperature.

    Attributes:
        values: Errors by the names of :data:`METRICS`. The NLL is in nats, the Brier score is in
            [0, 2] for softmax and [0, C] for sigmoid, the others are in [0, 1].
        reliability: The reliability in equal-width bins.
    """

    values: dict[str, float]
    reliability: Reliability


@dataclass(frozen=True)
class SetResult:
    """The fitted temperature and the errors of one set of samples.

    Attributes:
        num_samples: Number of samples of non-zero weight.
        num_foreground: Number of samples that are labelled as an object.
        fit: The fitted temperature.
        before: Errors at T = 1.
        after: Errors at the fitted temperature.
        description: A clause that says what the samples are.
        activation: That of the head.
        has_qualities: Whether the head is trained to predict a quality. What is called accuracy is
            then the mean quality.
    """

    num_samples: int
    num_foreground: int
    fit: TemperatureFit
    before: Measurement
    after: Measurement
    description: str = ''
    activation: Activation = 'softmax'
    has_qualities: bool = False


@dataclass(frozen=True)
class CalibrationResult:
    """The result of a calibration.

    Attributes:
        sets: Results by the name of the set of samples, ``distillation`` first. T is the fit to
            that one.
        comparison: The calibrators that fit the head, fitted to the samples of distillation; None
            for a single image.
        classes: Calibration of each class that the data label, of the samples of distillation.
        own_at_held_out: Errors of ``own_training`` at the T of ``distillation``; None without it.
        about: Plain data on the detector, the data and the run, written to the report as they
            are. It has ``teacher`` with ``config`` and ``data`` with ``num_images``.
        warnings: Sentences on what speaks against the use of T.
    """

    sets: dict[str, SetResult]
    comparison: CalibratorComparison | None
    about: dict[str, Any]
    warnings: tuple[str, ...]
    classes: tuple[ClassCalibration, ...] = ()
    own_at_held_out: Measurement | None = None

    @property
    def class_names(self) -> list[str]:
        """The names of the labelled classes, their numbers where the data name none."""
        numbers = [str(index) for index in range(len(self.classes))]
        return list(self.about['data'].get('classes', numbers))

    @property
    def fit(self) -> TemperatureFit:
        """The fit to the samples of distillation."""
        return self.sets[DISTILLATION].fit

    @property
    def class_fits(self) -> dict[type[ClassTemperatureScaling], ClassTemperatureFit]:
        """Fits of several temperatures by the calibrator; empty for sigmoid heads."""
        return {} if self.comparison is None else self.comparison.class_fits


def analyse(
    stores: Mapping[str, SampleStore],
    about: Mapping[str, Any],
    warnings: Sequence[str] = (),
    *,
    seed: int = 0,
) -> CalibrationResult:
    """Fit T to each set of samples and measure the errors before and after.

    Args:
        stores: The samples of :func:`~calkd_det.measurement.collect.collect_samples`. A set
            without samples is a warning, or an error if it is that of distillation.
        about: See :class:`CalibrationResult`.
        warnings: Warnings so far. Those of the fits are added.
        seed: Seed of the bootstrap and of the folds.

    Raises:
        TeacherError: No temperature can be fitted.
    """
    all_warnings = list(warnings)
    sets = {}
    for name, store in stores.items():
        if name != DISTILLATION and not len(store):
            all_warnings.append(f'There are no {readable_name(name)} to compare with.')
            continue
        sets[name] = fit_set(store, name, seed=seed)
    distillation_fit = sets[DISTILLATION].fit
    if distillation_fit.at_bound:
        all_warnings.append(
            f'T stopped at the bound {distillation_fit.temperature:g} and is no minimum: the '
            'likelihood still rises beyond it. Do not use it.'
        )
    all_warnings += [
        f'The {readable_name(name)} ask for another temperature, '
        f'T = {format_temperature(result.fit)}, than the samples of distillation, '
        f'T = {format_temperature(distillation_fit)}: one temperature does not calibrate this '
        'detector everywhere. Distillation is concerned with the latter.'
        for name, result in sets.items()
        if name not in (DISTILLATION, OWN_TRAINING) and disagree(distillation_fit, result.fit)
    ]
    comparison = compare_calibrators(stores[DISTILLATION], distillation_fit, seed=seed)
    own = None
    if OWN_TRAINING in sets:
        own = measure(stores[OWN_TRAINING], distillation_fit.temperature)
    classes = class_calibration(stores[DISTILLATION], distillation_fit.temperature)
    return CalibrationResult(sets, comparison, dict(about), tuple(all_warnings), classes, own)


def fit_set(store: SampleStore, name: str, *, seed: int = 0) -> SetResult:
    """Fit T to one set of samples, with an interval by resampling images.

    Raises:
        TeacherError: There are no samples, or no T changes their likelihood.
    """
    merging = store.merging_map
    background = None if merging is None else merging.background
    accumulator = TemperatureAccumulator(store.activation, background=background)
    try:
        for logits, labels, weights, groups in store.chunks():
            accumulator.update(logits, labels, weights, groups)
        fit = accumulator.compute(seed=seed)
    except ValueError as error:
        raise TeacherError(f'no temperature can be fitted to the {name} samples: {error}') from None
    num_classes = store.num_logits - (store.activation == 'softmax')
    return SetResult(
        num_samples=len(store),
        num_foreground=int((store.labels < num_classes).sum()),
        fit=fit,
        before=measure(store, 1.0),
        after=measure(store, fit.temperature),
        description=store.description,
        activation=store.activation,
        has_qualities=store.has_qualities,
    )


def measure(store: SampleStore, temperature: float) -> Measurement:
    """Measure the errors of ``logits / temperature`` in float64, a few MB at a time.

    They are of the classes that the data label.

    Args:
        store: At least one sample.
        temperature: T, > 0.
    """
    confidences: list[Tensor] = []
    hits: list[Tensor] = []
    nll = brier = 0.0
    for logits, labels, weights, _ in store.chunks():
        options = {'activation': store.activation, 'weights': weights}
        scaled = logits.double() / temperature
        if store.merging_map is not None:
            columns = store.merging_map.columns
            scaled = store.merging_map(scaled)
            labels = student_labels(labels, columns, len(columns))
        probs = class_scores(scaled, store.activation)
        confidence, hit = top_label(probs, labels, activation=store.activation)
        confidences.append(confidence)
        hits.append(hit)
        total = float(weights.double().sum())
        nll += total * negative_log_likelihood(scaled, labels, **options)
        brier += total * brier_score(probs, labels, **options)
    confidence, hit, weights = torch.cat(confidences), torch.cat(hits), store.weights
    equal_width, equal_mass = (
        reliability_from_confidences(
            confidence, hit, n_bins=NUM_BINS, binning=binning, weights=weights
        )
        for binning in ('width', 'mass')
    )
    total = float(weights.double().sum())
    values = {
        'nll': nll / total,
        'ece': equal_width.ece,
        'ece_over': equal_width.ece_over,
        'ece_under': equal_width.ece_under,
        'mce': equal_width.mce,
        'ace': equal_mass.ece,
        'brier': brier / total,
        'mean_confidence': equal_width.mean_confidence,
        'mean_accuracy': equal_width.mean_accuracy,
    }
    return Measurement(values, equal_width)


def readable_name(name: str) -> str:
    """Return the name of a set of samples for a sentence: ``RoIs of stage 1`` for ``s1``."""
    if name == OWN_TRAINING:
        return "the teacher's own training images"
    stage = re.fullmatch(r's(\d+)', name)
    return f'RoIs of stage {stage[1]}' if stage else _PARTS.get(name, name)


def is_part(name: str) -> bool:
    """Return whether the samples of a set are among those of distillation."""
    return readable_name(name) != name


def disagree(one: TemperatureFit, other: TemperatureFit) -> bool:
    """Check whether two temperatures differ much and not by chance.

    They do if one is more than :data:`DISAGREEMENT_RATIO` times the other and their 95 % intervals
    do not overlap. A temperature at a bound of the search is none.
    """
    if one.at_bound or other.at_bound:
        return False
    low, high = sorted((one.temperature, other.temperature))
    return high > DISAGREEMENT_RATIO * low and intervals_are_apart(one, other)


def intervals_are_apart(one: TemperatureFit, other: TemperatureFit) -> bool:
    """Check whether the 95 % intervals of two temperatures do not overlap; without one they do."""
    if one.interval is None or other.interval is None:
        return False
    return max(one.interval[0], other.interval[0]) > min(one.interval[1], other.interval[1])


def format_temperature(fit: TemperatureFit) -> str:
    """Format T with its interval for a sentence."""
    interval = fit.interval
    return f'{fit.temperature:.3f}' + (
        '' if interval is None else f' (95 % interval {interval[0]:.3f} to {interval[1]:.3f})'
    )
