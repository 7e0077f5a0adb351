"""Files of a calibration: the JSON that a config names, a report and its diagrams."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calkd_det.calibration.calibrator import SCHEMA_VERSION
from calkd_det.calibration.class_temperature_scaling import ForegroundBackgroundScaling
from calkd_det.calibration.diagram import plot_before_after
from calkd_det.measurement.analysis import (
    DISTILLATION,
    METRICS,
    OWN_TRAINING,
    CalibrationResult,
    SetResult,
    format_temperature,
    is_part,
    readable_name,
)
from calkd_det.measurement.calibrators import comparison_to_json
from calkd_det.measurement.class_table import class_table, classes_to_json
from calkd_det.measurement.comparison_text import comparison_text, own_training_text
from calkd_det.measurement.html_page import to_html
from calkd_det.measurement.teacher_calibration import bins_of

RESULT_FILE = 'temperature.json'
REPORT_FILE = 'report.md'
PAGE_FILE = 'report.html'

_ADVICE = {
    'softmax': "This T makes the teacher's scores most likely. It need not be the best T for a "
    'student: the published method aims at a slightly under-confident teacher, with T = 1.5 '
    'as its default and any T from 1.5 to 3 reported to work.',
    'sigmoid': "This T makes the teacher's scores most likely. The background rules it, of which a "
    'head of sigmoids has most. T = 1.5, the default of the published method, is for softmax heads '
    'and not to be used here: under sigmoids a T above 1 raises the scores of all background, and '
    'students of the mini data learnt less from such a teacher than from none.',
}

_QUALITIES = (
    'This head is trained to predict a quality as the score of the class of an object, such as the '
    'IoU of its box, and everything here is fitted to that quality and measured by it. Accuracy is '
    'the mean quality of the most probable class: calibrated means that samples with a score of '
    '0.8 have a mean quality of 0.8, not that 80 % of them are classified right.'
)

_IN_PERCENT = {name for name in METRICS if name not in ('nll', 'brier')}


def write_report(report: CalibrationResult, out: Path) -> tuple[Path, ...]:
    """Write the JSON, the Markdown, the same as HTML and a diagram for each set of samples.

    Args:
        report: The result of the calibration.
        out: The folder, created if it does not exist. Files of an earlier calibration are replaced.

    Returns:
        The files that were written.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = [out / RESULT_FILE, out / REPORT_FILE, out / PAGE_FILE]
    text = json.dumps(to_json(report), indent=2, ensure_ascii=False, allow_nan=False)
    files[0].write_text(text + '\n', encoding='utf-8')
    markdown = to_markdown(report, out)
    files[1].write_text(markdown, encoding='utf-8')
    for name, result in report.sets.items():
        figure = plot_before_after(
            result.before.reliability,
            result.after.reliability,
            result.fit.temperature,
            title=_diagram_title(report, name),
        )
        files.append(out / _diagram_file(name))
        figure.savefig(files[-1])
    files[2].write_text(to_html(markdown, out), encoding='utf-8')
    return tuple(files)


def to_json(report: CalibrationResult) -> dict[str, Any]:
    """Return the content of the file that ``TemperatureScaling(temperature='….json')`` reads."""
    distillation = _set_to_json(report.sets[DISTILLATION])
    return {
        'schema_version': SCHEMA_VERSION,
        'temperature': distillation.pop('temperature'),
        **distillation,
        **{cls.field: list(fit.temperatures) for cls, fit in report.class_fits.items()},
        'several_temperatures': {
            cls.field: {'kept': fit.kept, 'held_out_nll': fit.held_out_nll}
            for cls, fit in report.class_fits.items()
        },
        **({} if report.comparison is None else comparison_to_json(report.comparison)),
        'classes': classes_to_json(report.classes, report.class_names),
        'warnings': list(report.warnings),
        **report.about,
        'comparison': {
            name: {'samples_are': result.description or name, **_set_to_json(result)}
            for name, result in report.sets.items()
            if name != DISTILLATION
        },
        **(
            {}
            if report.own_at_held_out is None
            else {'own_training_at_held_out_temperature': report.own_at_held_out.values}
        ),
        'definitions': dict(METRICS),
    }


def config_lines(report: CalibrationResult, out: Path) -> tuple[str, ...]:
    """Return lines for a config: the recommended calibrator, and T from the file and as a number.

    Each line is there once. The first is the recommended one where calibrators were compared.
    """
    path = (out / RESULT_FILE).as_posix()
    lines = [
        f"dict(type='TemperatureScaling', temperature={path!r})",
        f"dict(type='TemperatureScaling', temperature={report.fit.temperature:.3f})",
    ]
    if report.comparison is not None:
        lines.insert(0, report.comparison.recommended.config(path))
    return tuple(f'calibrator={line}' for line in dict.fromkeys(lines))


def to_markdown(report: CalibrationResult, out: Path) -> str:
    """Return the report as Markdown. It shows the diagrams that are written beside it."""
    teacher, data = report.about['teacher'], report.about['data']
    parts = [
        f'# Calibration of {Path(teacher["config"]).stem}',
        f'**T = {format_temperature(report.fit)}**, fitted to '
        f'{report.sets[DISTILLATION].num_samples:,} samples of {data["num_images"]:,} images.',
        *(f'> **Warning:** {sentence}' for sentence in report.warnings),
        'To distil with it:' if report.comparison is None else _recommendation(report),
        '```python\n{}\n```'.format('\n# or\n'.join(config_lines(report, out))),
        _ADVICE[report.sets[DISTILLATION].activation],
        _unlabelled_text(report.about),
        _QUALITIES if report.sets[DISTILLATION].has_qualities else '',
    ]
    for name, result in report.sets.items():
        if name == DISTILLATION:
            parts += [
                '## Samples of distillation',
                'Distillation compares these, and T above is theirs.',
            ]
        else:
            parts += [
                f'## For comparison: {readable_name(name)}',
                'These are among the samples above.'
                if is_part(name) and name != OWN_TRAINING
                else 'These have no part in T above.',
                own_training_text(report) if name == OWN_TRAINING else '',
            ]
        parts += [
            f'{result.description or name}: {result.num_samples:,} samples, '
            f'{result.num_foreground:,} of them labelled as objects.',
            _metric_table(result),
            _bound_text(name, result),
            f'![Reliability before and after]({_diagram_file(name)})',
        ]
    parts += ['## By class', class_table(report.classes, report.class_names)]
    if report.comparison is not None:
        parts += ['## Which calibrator', comparison_text(report.comparison)]
    if report.class_fits:
        parts += ['## Several temperatures', _class_fits_text(report)]
    parts += ['## How it was made', _about_table(report.about)]
    return '\n\n'.join(part for part in parts if part) + '\n'


def _recommendation(report: CalibrationResult) -> str:
    recommended = report.comparison.recommended
    return (
        f'Recommended: **{recommended.name}**, the simplest calibrator whose error on images that '
        'it was not fitted to is within one standard error of the least. To distil with it, or '
        'with T:'
    )


def _unlabelled_text(about: Mapping[str, Any]) -> str:
    """Return what becomes of the teacher's classes that the data do not label; empty for none."""
    num_labelled = len(about['data'].get('classes', ()))
    num_classes = len(about['teacher'].get('classes', ()))
    if not num_labelled or num_labelled == num_classes:
        return ''
    return (
        f'The images label {num_labelled} of the {num_classes} classes of the teacher. The others '
        'count as background, as they do in a training on these classes, and all figures are of '
        'the labelled classes. Parameters of other classes are those of all labelled ones together.'
    )


def _set_to_json(result: SetResult) -> dict[str, Any]:
    fit = result.fit
    return {
        'temperature': fit.temperature,
        'interval_95': None if fit.interval is None else list(fit.interval),
        'at_bound': fit.at_bound,
        'bounds': list(fit.bounds),
        'fitted_to': 'qualities' if result.has_qualities else 'labels',
        'num_samples': result.num_samples,
        'num_foreground': result.num_foreground,
        'before': result.before.values,
        'after': result.after.values,
        'bins': {
            'before': bins_of(result.before.reliability),
            'after': bins_of(result.after.reliability),
        },
    }


def _diagram_file(name: str) -> str:
    return f'reliability_{name}.png'


def _diagram_title(report: CalibrationResult, name: str) -> str:
    samples = 'samples of distillation' if name == DISTILLATION else readable_name(name)
    return f'{Path(report.about["teacher"]["config"]).stem}: {samples}'


def _metric_table(result: SetResult) -> str:
    rows = [f'| | T = 1 | T = {format_temperature(result.fit)} |', '|---|---:|---:|']
    for name, title in METRICS.items():
        cells = [
            f'{100 * value:.2f} %' if name in _IN_PERCENT else f'{value:.4f}'
            for value in (result.before.values[name], result.after.values[name])
        ]
        rows.append(f'| {title} | {" | ".join(cells)} |')
    return '\n'.join(rows)


def _bound_text(name: str, result: SetResult) -> str:
    """Say that the T of a set for comparison is no minimum; empty where it is one."""
    if name == DISTILLATION or not result.fit.at_bound:
        return ''
    return (
        f'T = {result.fit.temperature:g} is a bound of the search and no minimum: the likelihood '
        'of these samples still rises beyond it.'
    )


def _class_fits_text(report: CalibrationResult) -> str:
    kept_as = {
        'classes': 'fitted by class',
        'global': 'all the global T: more of them did not surely lower the held-out NLL',
        'identity': 'all 1: no temperature surely lowered the held-out NLL',
    }
    rows = [
        '| calibrator | NLL at T = 1 | with the global T | with its own | kept | temperatures |',
        '|---|---:|---:|---:|---|---|',
    ]
    for cls, fit in report.class_fits.items():
        errors = fit.held_out_nll
        # All foreground classes share one temperature, so two of the list are enough.
        tied = cls is ForegroundBackgroundScaling
        distinct = (fit.temperatures[0], fit.temperatures[-1]) if tied else fit.temperatures
        cells = [
            f'`{cls.__name__}`',
            *(f'{errors[name]:.4f}' for name in ('identity', 'global', 'classes')),
            kept_as[fit.kept],
            f'{min(distinct):.2f} to {max(distinct):.2f}'
            if len(distinct) > 2
            else _object_background_text(distinct),
        ]
        rows.append(f'| {" | ".join(cells)} |')
    explanation = (
        'Calibrators with a temperature for each class, or one for objects and one for the '
        'background, read theirs from the same file, e.g. '
        "`dict(type='ClassTemperatureScaling', temperatures='…/temperature.json')`. The errors are "
        'on images that the temperatures were not fitted to (cross-validation over images); what '
        'does not lower them by more than one standard error is not kept.'
    )
    return explanation + '\n\n' + '\n'.join(rows)


def _object_background_text(temperatures: Sequence[float]) -> str:
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
