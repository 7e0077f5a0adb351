"""The result of a calibration: temperature, errors before and after, and the files that tell it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calkd_det.calibration.class_temperature_scaling import (
    ClassTemperatureScaling,
    ForegroundBackgroundScaling,
)
from calkd_det.calibration.class_temperatures import (
    ClassTemperatureFit,
    fit_class_temperatures,
    foreground_background,
)
from calkd_det.calibration.collect import SampleStore
from calkd_det.calibration.diagram import plot_before_after
from calkd_det.calibration.reliability import (
    Reliability,
    reliability_from_confidences,
    top_label,
)
from calkd_det.calibration.scores import brier_score, negative_log_likelihood
from calkd_det.calibration.temperature import TemperatureAccumulator, TemperatureFit
from calkd_det.calibration.temperature_scaling import SCHEMA_VERSION
from calkd_det.errors import TeacherError

NUM_BINS = 15
DISTILLATION = 'distillation'
RESULT_FILE = 'temperature.json'
REPORT_FILE = 'report.md'

# Two temperatures disagree much if their intervals are apart and they differ by this factor.
DISAGREEMENT_RATIO = 1.25

# Enough for a temperature a class, and it bounds memory: 65 MB with 81 logits.
MAX_CLASS_SAMPLES = 200_000

SAMPLES = {
    DISTILLATION: (
        'The RoIs that distillation sees: proposals and ground truth, sampled as in training'
    ),
    'proposals': 'Every proposal of the RPN with the training settings, without the ground truth',
    'detections': 'The boxes after NMS with the test settings, each with the logits of its RoI',
}
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
_IN_PERCENT = {name for name in METRICS if name not in ('nll', 'brier')}


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
    """

    num_samples: int
    num_foreground: int
    fit: TemperatureFit
    before: Measurement
    after: Measurement


@dataclass(frozen=True)
class CalibrationReport:
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

    def to_json(self) -> dict[str, Any]:
        """The content of the file that ``TemperatureScaling(temperature='….json')`` reads."""
        own = _set_to_json(self.sets[DISTILLATION])
        return {
            'schema_version': SCHEMA_VERSION,
            'temperature': own.pop('temperature'),
            **own,
            **{cls.field: list(fit.temperatures) for cls, fit in self.several.items()},
            'several_temperatures': {
                cls.field: {'kept': fit.kept, 'held_out_nll': fit.held_out_nll}
                for cls, fit in self.several.items()
            },
            'warnings': list(self.warnings),
            **self.about,
            'comparison': {
                name: {'samples_are': SAMPLES.get(name, name), **_set_to_json(result)}
                for name, result in self.sets.items()
                if name != DISTILLATION
            },
            'definitions': dict(METRICS),
        }

    def config_lines(self, out: Path) -> tuple[str, str]:
        """What to paste into a config: the file, or the number alone."""
        start = "calibrator=dict(type='TemperatureScaling', temperature="
        path = (out / RESULT_FILE).as_posix()
        return f'{start}{path!r})', f'{start}{self.fit.temperature:.3f})'


def analyse(
    stores: Mapping[str, SampleStore],
    about: Mapping[str, Any],
    warnings: Sequence[str] = (),
    *,
    seed: int = 0,
) -> CalibrationReport:
    """Fits T to each set of samples and measures the errors before and after.

    Args:
        stores: As :func:`~calkd_det.calibration.collect.collect_samples` gives them. A set
            without samples gets a warning, or, if it is that of distillation, an error.
        about: See :class:`CalibrationReport`.
        warnings: Known already; those of the fits are added.
        seed: Of the bootstrap.

    Raises:
        TeacherError: No temperature can be fitted.
    """
    found = list(warnings)
    sets = {}
    for name, store in stores.items():
        if name != DISTILLATION and not len(store):
            found.append(f'There are no {name} to compare with.')
            continue
        sets[name] = fit_set(store, name, seed=seed)
    own = sets[DISTILLATION].fit
    if own.at_bound:
        found.append(
            f'T stopped at the bound {own.temperature:g} and is no minimum: the likelihood still '
            'rises beyond it. Do not use it.'
        )
    found += [
        f'The {name} ask for another temperature, T = {_t(result.fit)}, than the RoIs of '
        f'distillation, T = {_t(own)}: one temperature does not calibrate this detector '
        'everywhere. Distillation is concerned with the latter.'
        for name, result in sets.items()
        if name != DISTILLATION and disagree(own, result.fit)
    ]
    several = fit_several(stores[DISTILLATION], seed=seed)
    return CalibrationReport(sets, several, dict(about), tuple(found))


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
        probs = scaled.softmax(dim=1) if store.activation == 'softmax' else scaled.sigmoid()
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


def disagree(one: TemperatureFit, other: TemperatureFit) -> bool:
    """Whether two temperatures are far apart, and that is no chance.

    That is, one is more than :data:`DISAGREEMENT_RATIO` times the other, and their 95 % intervals
    do not overlap.
    """
    low, high = sorted((one.temperature, other.temperature))
    if high <= DISAGREEMENT_RATIO * low or one.interval is None or other.interval is None:
        return False
    return max(one.interval[0], other.interval[0]) > min(one.interval[1], other.interval[1])


def write_report(report: CalibrationReport, out: Path) -> tuple[Path, ...]:
    """Writes the JSON, the Markdown and a diagram for each set of samples.

    Args:
        report: What to write.
        out: The folder; made if it is not there. Files of an earlier calibration are replaced.

    Returns:
        The files.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = [out / RESULT_FILE, out / REPORT_FILE]
    text = json.dumps(report.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
    files[0].write_text(text + '\n', encoding='utf-8')
    files[1].write_text(to_markdown(report, out), encoding='utf-8')
    for name, result in report.sets.items():
        figure = plot_before_after(
            result.before.reliability,
            result.after.reliability,
            result.fit.temperature,
            title=_title(report, name),
        )
        files.append(out / _diagram(name))
        figure.savefig(files[-1])
    return tuple(files)


def to_markdown(report: CalibrationReport, out: Path) -> str:
    """The report as Markdown, with its diagrams beside it."""
    teacher, data = report.about['teacher'], report.about['data']
    parts = [
        f'# Calibration of {Path(teacher["config"]).stem}',
        f'**T = {_t(report.fit)}**, fitted to {report.sets[DISTILLATION].num_samples:,} RoIs of '
        f'{data["num_images"]:,} images.',
        *(f'> **Warning:** {sentence}' for sentence in report.warnings),
        'To distil with it:',
        '```python\n{}\n# or\n{}\n```'.format(*report.config_lines(out)),
        "This T makes the teacher's scores most likely. It need not be the best T for a "
        'student: the published method aims at a slightly under-confident teacher, with T = 1.5 '
        'as its default and any T from 1.5 to 3 reported to work.',
    ]
    for name, result in report.sets.items():
        if name == DISTILLATION:
            parts += ['## Samples of distillation']
        else:
            parts += [f'## For comparison: {name}', 'These have no part in T above.']
        parts += [
            f'{SAMPLES.get(name, name)}: {result.num_samples:,} samples, '
            f'{result.num_foreground:,} of them labelled as objects.',
            _metric_table(result),
            f'![Reliability before and after]({_diagram(name)})',
        ]
    if report.several:
        parts += ['## Several temperatures', _several_text(report)]
    parts += ['## How it was made', _about_table(report.about)]
    return '\n\n'.join(part for part in parts if part) + '\n'


def _set_to_json(result: SetResult) -> dict[str, Any]:
    fit = result.fit
    return {
        'temperature': fit.temperature,
        'interval_95': None if fit.interval is None else list(fit.interval),
        'at_bound': fit.at_bound,
        'bounds': list(fit.bounds),
        'num_samples': result.num_samples,
        'num_foreground': result.num_foreground,
        'before': result.before.values,
        'after': result.after.values,
    }


def _t(fit: TemperatureFit) -> str:
    interval = fit.interval
    return f'{fit.temperature:.3f}' + (
        '' if interval is None else f' (95 % interval {interval[0]:.3f} to {interval[1]:.3f})'
    )


def _diagram(name: str) -> str:
    return f'reliability_{name}.png'


def _title(report: CalibrationReport, name: str) -> str:
    samples = 'RoIs of distillation' if name == DISTILLATION else name
    return f'{Path(report.about["teacher"]["config"]).stem}: {samples}'


def _metric_table(result: SetResult) -> str:
    rows = [f'| | T = 1 | T = {_t(result.fit)} |', '|---|---:|---:|']
    for name, title in METRICS.items():
        cells = [
            f'{100 * value:.2f} %' if name in _IN_PERCENT else f'{value:.4f}'
            for value in (result.before.values[name], result.after.values[name])
        ]
        rows.append(f'| {title} | {" | ".join(cells)} |')
    return '\n'.join(rows)


def _several_text(report: CalibrationReport) -> str:
    kept_as = {
        'classes': 'fitted by class',
        'global': 'all the global T: more of them did not lower the held-out NLL',
        'identity': 'all 1: no temperature lowered the held-out NLL',
    }
    rows = [
        '| calibrator | NLL at T = 1 | with the global T | with its own | kept | temperatures |',
        '|---|---:|---:|---:|---|---|',
    ]
    for cls, fit in report.several.items():
        errors = fit.held_out_nll
        # Foreground classes share one: the first and the background's say it all.
        tied = cls is ForegroundBackgroundScaling
        shown = (fit.temperatures[0], fit.temperatures[-1]) if tied else fit.temperatures
        cells = [
            f'`{cls.__name__}`',
            *(f'{errors[name]:.4f}' for name in ('identity', 'global', 'classes')),
            kept_as[fit.kept],
            f'{min(shown):.2f} to {max(shown):.2f}' if len(shown) > 2 else _pair(shown),
        ]
        rows.append(f'| {" | ".join(cells)} |')
    explanation = (
        'Calibrators with a temperature for each class, or one for objects and one for the '
        'background, read theirs from the same file, e.g. '
        "`dict(type='ClassTemperatureScaling', temperatures='…/temperature.json')`. The errors are "
        'on images that the temperatures were not fitted to (cross-validation over images); what '
        'does not lower them is not kept.'
    )
    return explanation + '\n\n' + '\n'.join(rows)


def _pair(temperatures: Sequence[float]) -> str:
    return 'objects {:.2f}, background {:.2f}'.format(*temperatures)


def _about_table(about: Mapping[str, Any]) -> str:
    rows = ['| | |', '|---|---|']
    for key, value in about.items():
        if isinstance(value, Mapping):
            rows += [f'| {key}: {name} | {_cell(entry)} |' for name, entry in value.items()]
        else:
            rows.append(f'| {key} | {_cell(value)} |')
    return '\n'.join(rows)


def _cell(value: Any) -> str:
    return ', '.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
