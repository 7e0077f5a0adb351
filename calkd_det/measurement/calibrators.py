"""Comparison of the calibrators that fit a head, on images that they were not fitted to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calkd_det.calibration import (
    BackgroundBiasScaling,
    BetaScaling,
    Calibrator,
    ClassTemperatureFit,
    ClassTemperatureScaling,
    ForegroundBackgroundScaling,
    PlattScaling,
    ScalingFit,
    TemperatureAccumulator,
    TemperatureFit,
    foreground_background,
)
from calkd_det.calibration.binned_decisions import BinnedDecisions
from calkd_det.calibration.choice import (
    Calibration,
    HeldOutErrors,
    cross_validate,
    nll_excess,
    simplest_within_one_standard_error,
)
from calkd_det.calibration.class_temperatures import (
    DEFAULT_PRIOR_STD,
    choose_class_temperatures,
    class_scaling,
    fit_tied_temperatures,
)
from calkd_det.calibration.scaling_families import (
    BACKGROUND_BIAS,
    BETA,
    PLATT,
    TEMPERATURE,
    Family,
)
from calkd_det.calibration.scaling_fits import fit_scaling, fit_streamed
from calkd_det.measurement.collect import SampleStore
from calkd_det.measurement.fewer_classes import student_labels
from calkd_det.teachers.class_map import ClassMap

# Enough for parameters of each class; bounds the memory to 65 MB with 81 logits.
MAX_CLASS_SAMPLES = 200_000
NUM_FOLDS = 5

SIGMOID_FITS: tuple[tuple[type[Calibrator], Family, bool], ...] = (
    (PlattScaling, PLATT, False),
    (BetaScaling, BETA, False),
    (PlattScaling, PLATT, True),
    (BetaScaling, BETA, True),
)


@dataclass(frozen=True)
class CalibratorResult:
    """A calibrator with its fit to all samples and its held-out errors.

    Attributes:
        name: Its name for a reader, such as ``PlattScaling per class``.
        type: The ``type`` that a config names it by.
        field: The key of the calibration file that holds its parameters; None for T = 1.
        num_parameters: Number of fitted numbers.
        errors: Its errors on images that it was not fitted to.
        fit: Its fit to all samples; None for temperatures.
    """

    name: str
    type: str
    field: str | None
    num_parameters: int
    errors: HeldOutErrors
    fit: ScalingFit | None = None

    def config(self, file: str) -> str:
        """Return how a config writes it, with the parameters of a calibration file."""
        if self.field is None:
            return f'dict(type={self.type!r}, temperature=1.0)'
        key = {'TemperatureScaling': 'temperature', **dict.fromkeys(_LISTS, 'temperatures')}
        arguments = f'{key.get(self.type, "parameters")}={file!r}'
        per_class = ', per_class=True' if self.field.startswith('class_') and self.fit else ''
        return f'dict(type={self.type!r}, {arguments}{per_class})'


_LISTS = (ForegroundBackgroundScaling.__name__, ClassTemperatureScaling.__name__)


@dataclass(frozen=True)
class CalibratorComparison:
    """The calibrators that fit a head, the simplest first, and which is recommended.

    Attributes:
        results: All of them. The first is none, T = 1.
        recommended: The simplest within one standard error of the best.
        class_fits: Fits of several temperatures, for softmax heads.
        num_folds: Number of folds of the cross-validation.
    """

    results: tuple[CalibratorResult, ...]
    recommended: CalibratorResult
    class_fits: dict[type[ClassTemperatureScaling], ClassTemperatureFit]
    num_folds: int

    def excess(self, result: CalibratorResult) -> tuple[float, float]:
        """Return by how much its held-out NLL exceeds the least, and the standard error of that."""
        best = min((other.errors for other in self.results), key=lambda errors: errors.mean_nll)
        return nll_excess(result.errors, best)


def compare_calibrators(
    store: SampleStore, temperature: TemperatureFit, *, seed: int = 0
) -> CalibratorComparison | None:
    """Fit the calibrators that fit the head, and compare them by cross-validation over images.

    Args:
        store: The samples of distillation. Held-out errors and parameters of softmax classes are
            of at most :data:`MAX_CLASS_SAMPLES` of evenly spaced images, all other parameters of
            all samples.
        temperature: The fit of T to all of them.
        seed: Seed of the folds and of the bootstrap.

    Returns:
        The comparison; None for a single image, which leaves nothing to hold out.
    """
    samples = store.evenly_spaced_images(MAX_CLASS_SAMPLES)
    num_images = len(samples[3].unique())
    if num_images < 2:
        return None
    num_folds = min(NUM_FOLDS, num_images)
    if store.merging_map is not None:
        compare = _compare_merged
    else:
        compare = _compare_softmax if store.activation == 'softmax' else _compare_sigmoid
    results, class_temperatures = compare(store, samples, num_folds, seed)
    at_bound = [
        result.type == 'TemperatureScaling' and result.field is not None and temperature.at_bound
        for result in results
    ]
    sound = [
        result
        for result, stopped in zip(results, at_bound)
        if not stopped and (result.fit is None or not result.fit.at_bound)
    ]
    chosen = simplest_within_one_standard_error(
        [result.errors for result in sound], [result.num_parameters for result in sound]
    )
    recommended = sound[chosen]
    class_fits = {
        cls: choose_class_temperatures(
            [results[0].errors, results[1].errors, result.errors],
            class_temperatures[cls],
            result.num_parameters,
            keep='classes' if result is recommended else None,
        )
        for cls in class_temperatures
        for result in results
        if result.type == cls.__name__
    }
    return CalibratorComparison(tuple(results), recommended, class_fits, num_folds)


def comparison_to_json(comparison: CalibratorComparison) -> dict[str, Any]:
    """Return the entries of the calibration file on the calibrators that were compared."""
    fits = [result for result in comparison.results if result.fit is not None]
    return {
        **{result.field: result.fit.parameters for result in fits},
        'recommended': comparison.recommended.name,
        'calibrators': [
            {
                'name': result.name,
                'type': result.type,
                'parameters_under': result.field,
                'num_parameters': result.num_parameters,
                'at_bound': result.fit.at_bound if result.fit else None,
                'interval_95': result.fit.intervals if result.fit else None,
                'held_out': {
                    'nll': result.errors.mean_nll,
                    'brier': result.errors.mean_brier,
                    **dict(zip(('nll_excess', 'nll_excess_standard_error'), excess)),
                    'score_gap': {
                        f'{threshold:g}': _or_none(gap)
                        for threshold, gap in result.errors.score_gap.items()
                    },
                    'foreground_gap': _or_none(result.errors.foreground_gap),
                },
            }
            for result, excess in (
                (result, comparison.excess(result)) for result in comparison.results
            )
        ],
    }


def _compare_sigmoid(
    store: SampleStore, samples: tuple[Tensor, ...], num_folds: int, seed: int
) -> tuple[list[CalibratorResult], dict]:
    # Parameters of each class are those of all where there is one class.
    kinds = [kind for kind in SIGMOID_FITS if store.num_logits > 1 or not kind[2]]

    starts = _fit_binned(kinds, *samples[:3])

    def fit_all(*training: Tensor) -> list[Calibration]:
        fits = _fit_binned(kinds, *training)
        temperature = fits.pop('temperature').parameters['temperature']
        scaled = [cls(**fit.parameters) for (cls, *_), fit in zip(kinds, fits.values())]
        return [_unscaled, _divide_by(temperature), *scaled]

    errors = cross_validate(fit_all, *samples, 'sigmoid', num_folds=num_folds, seed=seed)
    results = _temperature_results(errors)
    for (cls, family, per_class), found in zip(kinds, errors[2:]):
        field = f'class_{cls.field}' if per_class else cls.field
        start = starts[field].theta
        fit = fit_streamed(family, store.chunks, per_class=per_class, seed=seed, start=start)
        if per_class and store.class_map is not None:
            fit = _with_all_classes(fit, family, store.class_map)
        count = len(family.parameters) * (store.num_logits if per_class else 1)
        name = f'{cls.__name__} per class' if per_class else cls.__name__
        results.append(CalibratorResult(name, cls.__name__, field, count, found, fit))
    return results, {}


def _compare_softmax(
    store: SampleStore, samples: tuple[Tensor, ...], num_folds: int, seed: int
) -> tuple[list[CalibratorResult], dict]:
    tied = {
        ForegroundBackgroundScaling: np.array(foreground_background(store.num_logits)),
        ClassTemperatureScaling: np.arange(store.num_logits),
    }

    def fit_all(logits: Tensor, labels: Tensor, weights: Tensor) -> list[Calibration]:
        fit = fit_scaling(BACKGROUND_BIAS, logits, labels, weights=weights, num_resamples=0)
        several = _fit_tied(logits, labels, weights, tied)
        return [
            _unscaled,
            class_scaling(several[0][0]),
            BackgroundBiasScaling(**fit.parameters),
            *(class_scaling(by_class) for _, by_class in several),
        ]

    errors = cross_validate(fit_all, *samples, 'softmax', num_folds=num_folds, seed=seed)
    fit = fit_streamed(BACKGROUND_BIAS, store.chunks, seed=seed)
    cls = BackgroundBiasScaling
    results = _temperature_results(errors)
    results.append(CalibratorResult(cls.__name__, cls.__name__, cls.field, 2, errors[2], fit))
    for (cls, classes), found in zip(tied.items(), errors[3:]):
        count = int(classes.max()) + 1
        results.append(CalibratorResult(cls.__name__, cls.__name__, cls.field, count, found))
    return results, dict(zip(tied, _fit_tied(*samples[:3], tied)))


def _compare_merged(
    store: SampleStore, samples: tuple[Tensor, ...], num_folds: int, seed: int
) -> tuple[list[CalibratorResult], dict]:
    """Compare T with none, of a softmax head with classes that the data do not label.

    A bias of the background, or a temperature of each class, would need labels of all of the
    teacher's classes.
    """
    merging = store.merging_map
    columns = merging.columns
    logits, labels, weights, groups = samples
    labels = student_labels(labels, columns, len(columns))

    def fit_all(logits: Tensor, labels: Tensor, weights: Tensor) -> list[Calibration]:
        accumulator = TemperatureAccumulator('softmax', background=merging.background)
        accumulator.update(logits, merging.label_columns[labels], weights)
        temperature = accumulator.compute(num_resamples=0).temperature
        return [merging, lambda logits: merging(logits.double() / temperature)]

    errors = cross_validate(
        fit_all, logits, labels, weights, groups, 'softmax', num_folds=num_folds, seed=seed
    )
    return _temperature_results(errors), {}


def _with_all_classes(fit: ScalingFit, family: Family, class_map: ClassMap) -> ScalingFit:
    """Give the classes that the data do not label the parameters of all labelled ones together."""
    pooled = dict(zip((p.name for p in family.parameters), fit.theta[0][0].tolist()))
    num_teacher_classes = len(class_map.columns) + class_map.num_others
    parameters = {}
    for name, values in fit.parameters.items():
        parameters[name] = [pooled[name]] * num_teacher_classes
        for column, value in zip(class_map.columns.tolist(), values):
            parameters[name][column] = value
    return replace(fit, parameters=parameters)


def _temperature_results(errors: Sequence[HeldOutErrors]) -> list[CalibratorResult]:
    return [
        CalibratorResult('none, T = 1', 'TemperatureScaling', None, 0, errors[0]),
        CalibratorResult('TemperatureScaling', 'TemperatureScaling', 'temperature', 1, errors[1]),
    ]


def _fit_binned(
    kinds: Sequence[tuple[type[Calibrator], Family, bool]],
    logits: Tensor,
    labels: Tensor,
    weights: Tensor,
) -> dict[str, ScalingFit]:
    """Return the fits to binned decisions by the field of the file, the temperature first."""
    decisions = BinnedDecisions(logits.shape[1])
    decisions.update(logits, labels, weights)
    batches = decisions.batches
    fits = {'temperature': fit_streamed(TEMPERATURE['sigmoid'], batches, num_resamples=0)}
    for cls, family, per_class in kinds:
        field = f'class_{cls.field}' if per_class else cls.field
        start = fits[cls.field].theta if per_class else None
        fits[field] = fit_streamed(
            family, batches, per_class=per_class, num_resamples=0, start=start
        )
    return fits


def _unscaled(logits: Tensor) -> Tensor:
    return logits


def _divide_by(temperature: float) -> Calibration:
    return lambda logits: logits.double() / temperature


def _fit_tied(
    logits: Tensor, labels: Tensor, weights: Tensor, tied: dict[type, np.ndarray]
) -> list[tuple[np.ndarray, np.ndarray]]:
    weights = weights.to(torch.float64)
    return [
        fit_tied_temperatures(logits, labels, weights, classes, DEFAULT_PRIOR_STD)
        for classes in tied.values()
    ]


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
