"""Fits the temperature to collected samples and measures the errors before and after."""

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
    ForegroundBackgroundScaling,
    Reliability,
    TemperatureAccumulator,
    TemperatureFit,
    brier_score,
    fit_class_temperatures,
    foreground_background,
    negative_log_likelihood,
    reliability_from_confidences,
)
from calkd_det.calibration.reliability import top_label
from calkd_det.calibration.scores import class_scores
from calkd_det.errors import TeacherError
from calkd_det.measurement.collect import SampleStore

NUM_BINS = 15
DISTILLATION = 'distillation'

# Two temperatures disagree much if their intervals are apart and they differ by this factor.
DISAGREEMENT_RATIO = 1.25

# Enough for a temperature a class, and it bounds memory: 65 MB with 81 logits.
MAX_CLASS_SAMPLES = 200_000

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
        values: By the names of :data:`METRICS`; errors, confidence and accuracy in [0, 1].
        reliability: In equal-width bins.
    """

    values: dict[str, float]
    reliability: Reliability


@dataclass(frozen=True)
class SetResult:
    """What was found on one set of samples.

    Attributes:
        num_samples: Number of samples of non-zero weight.
        num_foreground: How many of them are labelled as an object.
        fit: The temperature.
        before: Errors at T = 1.
        after: Errors at the fitted temperature.
        samples_are: What the samples are, a clause.
    """

    num_samples: int
    num_foreground: int
    fit: TemperatureFit
    before: Measurement
    after: Measurement
    samples_are: str = ''


@dataclass(frozen=True)
class CalibrationResult:
    """All that a calibration found.

    Attributes:
        sets: Results by the name of the set, ``distillation`` first; T is that one's.
        several: Calibrators of several temperatures fitted to the samples of distillation, by
            their class.
        about: What was calibrated, with what and when; plain data, written as it is. It has
            ``teacher`` with ``config`` and ``data`` with ``num_images``.
        warnings: Sentences on what speaks against using T.
    """

    sets: dict[str, SetResult]
    several: dict[type[ClassTemperatureScaling], ClassTemperatureFit]
    about: dict[str, Any]
    warnings: tuple[str, ...]

    @property
    def fit(self) -> TemperatureFit:
        """The fit to the samples of distillation."""
        return self.sets[DISTILLATION].fit


def analyse(
    stores: Mapping[str, SampleStore],
    about: Mapping[str, Any],
    warnings: Sequence[str] = (),
    *,
    seed: int = 0,
) -> CalibrationResult:
    """Fits T to each set of samples and measures the errors before and after.

    Args:
        stores: As :func:`~calkd_det.measurement.collect.collect_samples` gives them. A set
            without samples gets a warning, or, if it is that of distillation, an error.
        about: See :class:`CalibrationResult`.
        warnings: Known already; those of the fits are added.
        seed: Of the bootstrap.

    Raises:
        TeacherError: No temperature can be fitted.
    """
    found = list(warnings)
    sets = {}
    for name, store in stores.items():
        if name != DISTILLATION and not len(store):
            found.append(f'There are no {in_words(name)} to compare with.')
            continue
        sets[name] = fit_set(store, name, seed=seed)
    own = sets[DISTILLATION].fit
    if own.at_bound:
        found.append(
            f'T stopped at the bound {own.temperature:g} and is no minimum: the likelihood still '
            'rises beyond it. Do not use it.'
        )
    found += [
        f'The {in_words(name)} ask for another temperature, T = {format_temperature(result.fit)}, '
        f'than the samples of distillation, T = {format_temperature(own)}: one temperature does '
        'not calibrate this detector everywhere. Distillation is concerned with the latter.'
        for name, result in sets.items()
        if name != DISTILLATION and disagree(own, result.fit)
    ]
    several = fit_several(stores[DISTILLATION], seed=seed)
    return CalibrationResult(sets, several, dict(about), tuple(found))


def fit_several(
    store: SampleStore, *, seed: int = 0
) -> dict[type[ClassTemperatureScaling], ClassTemperatureFit]:
    """Fits the calibrators of several temperatures to a softmax head's samples.

    Args:
        store: Samples of at least two images; only :data:`MAX_CLASS_SAMPLES` of them, of evenly
            spaced images, are used.
        seed: Of the folds.
    """
    if store.activation != 'softmax':
        return {}
    logits, labels, weights, groups = store.some_images(MAX_CLASS_SAMPLES)
    num_images = len(groups.unique())
    if num_images < 2:
        return {}
    options = dict(weights=weights, groups=groups, num_folds=min(5, num_images), seed=seed)
    tied = {
        ClassTemperatureScaling: None,
        ForegroundBackgroundScaling: foreground_background(logits.shape[1]),
    }
    return {
        cls: fit_class_temperatures(logits, labels, tied=classes, **options)
        for cls, classes in tied.items()
    }


def fit_set(store: SampleStore, name: str, *, seed: int = 0) -> SetResult:
    """Fits T to one set of samples, its interval by resampling images.

    Raises:
        TeacherError: There are no samples, or no T has an effect on them.
    """
    accumulator = TemperatureAccumulator(store.activation)
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
        samples_are=store.samples_are,
    )


def measure(store: SampleStore, temperature: float) -> Measurement:
    """Measures the errors of ``logits / temperature``, in float64, a few MB at a time.

    Args:
        store: Samples, at least one.
        temperature: > 0.
    """
    confidences: list[Tensor] = []
    hits: list[Tensor] = []
    nll = brier = 0.0
    for logits, labels, weights, _ in store.chunks():
        kind = {'activation': store.activation, 'weights': weights}
        scaled = logits.double() / temperature
        probs = class_scores(scaled, store.activation)
        confidence, hit = top_label(probs, labels, activation=store.activation)
        confidences.append(confidence)
        hits.append(hit)
        total = float(weights.double().sum())
        nll += total * negative_log_likelihood(logits, labels, temperature=temperature, **kind)
        brier += total * brier_score(probs, labels, **kind)
    confidence, hit, weights = torch.cat(confidences), torch.cat(hits), store.weights
    width, mass = (
        reliability_from_confidences(
            confidence, hit, n_bins=NUM_BINS, binning=binning, weights=weights
        )
        for binning in ('width', 'mass')
    )
    total = float(weights.double().sum())
    values = {
        'nll': nll / total,
        'ece': width.ece,
        'ece_over': width.ece_over,
        'ece_under': width.ece_under,
        'mce': width.mce,
        'ace': mass.ece,
        'brier': brier / total,
        'mean_confidence': width.mean_confidence,
        'mean_accuracy': width.mean_accuracy,
    }
    return Measurement(values, width)


def in_words(name: str) -> str:
    """The name of a set for a sentence: ``s1`` are the ``RoIs of stage 1``."""
    stage = re.fullmatch(r's(\d+)', name)
    return f'RoIs of stage {stage[1]}' if stage else name


def disagree(one: TemperatureFit, other: TemperatureFit) -> bool:
    """Whether two temperatures are far apart, and that is no chance.

    That is, one is more than :data:`DISAGREEMENT_RATIO` times the other, and their 95 % intervals
    do not overlap.
    """
    low, high = sorted((one.temperature, other.temperature))
    if high <= DISAGREEMENT_RATIO * low or one.interval is None or other.interval is None:
        return False
    return max(one.interval[0], other.interval[0]) > min(one.interval[1], other.interval[1])


def format_temperature(fit: TemperatureFit) -> str:
    """T with its interval, for a sentence."""
    interval = fit.interval
    return f'{fit.temperature:.3f}' + (
        '' if interval is None else f' (95 % interval {interval[0]:.3f} to {interval[1]:.3f})'
    )
