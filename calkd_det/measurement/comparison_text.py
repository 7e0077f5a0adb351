"""The comparison of calibrators as a table and as a line for the terminal."""

from __future__ import annotations

import math

from calkd_det.calibration.choice import SCORE_THRESHOLDS
from calkd_det.measurement.analysis import (
    OWN_TRAINING,
    CalibrationResult,
    format_temperature,
    intervals_are_apart,
)
from calkd_det.measurement.calibrators import CalibratorComparison, CalibratorResult

# More numbers than these are in the file only.
_MAX_SHOWN = 3


def comparison_text(comparison: CalibratorComparison) -> str:
    """Return the table of all calibrators as Markdown, with what its columns mean."""
    header = [
        'calibrator',
        'parameters',
        'NLL',
        'above the least',
        'Brier',
        *(f'gap, scores ≥ {threshold:g}' for threshold in SCORE_THRESHOLDS),
        'gap, objects',
        'fitted to all images',
    ]
    rows = [header, ['---', *['---:'] * (len(header) - 2), '---']]
    for result in comparison.results:
        errors = result.errors
        excess, standard_error = comparison.excess(result)
        chosen = result is comparison.recommended
        rows.append(
            [
                f'**{result.name}**' if chosen else result.name,
                str(result.num_parameters),
                f'{errors.mean_nll:.5f}',
                f'{excess:.5f} ± {standard_error:.5f}' if excess else 'least',
                f'{errors.mean_brier:.5f}',
                *(_points(errors.score_gap[threshold]) for threshold in SCORE_THRESHOLDS),
                _points(errors.foreground_gap),
                _parameters(result),
            ]
        )
    explanation = (
        f'Each was fitted {comparison.num_folds} times, and measured on the images that were left '
        'out. ± is one standard error of the difference, over images. The bold one has the fewest '
        'parameters of those whose NLL is within one standard error of the least, and is '
        'recommended. A gap is the mean score minus the share right, in points: above 0 the scores '
        'are too high. It is given for all decisions for a class with a calibrated score above a '
        'threshold, and, by the top label, for the samples labelled as objects. Samples labelled '
        'as objects are chosen by their label, so a gap below 0 is not an error by itself.'
    )
    return explanation + '\n\n' + '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def recommendation_line(comparison: CalibratorComparison) -> str:
    """Return which calibrator is recommended and why, in one line."""
    chosen, none = comparison.recommended, comparison.results[0]
    if chosen is none:
        return 'recommended: no calibrator, T = 1: none is better by more than a standard error'
    parameters = _parameters(chosen)
    return (
        f'recommended: {chosen.name}{parameters and f" ({parameters})"}, NLL on held-out folds '
        f'{chosen.errors.mean_nll:.4f}, {none.errors.mean_nll:.4f} without a calibrator'
    )


def own_training_text(report: CalibrationResult) -> str:
    """Return how far the fit to the teacher's own training images is from the held-out one.

    Empty where these images were not given.
    """
    if report.own_at_held_out is None:
        return ''
    own, held_out = report.sets[OWN_TRAINING].fit, report.fit
    ratio = own.temperature / held_out.temperature
    values = report.own_at_held_out.values
    confidence, accuracy = values['mean_confidence'], values['mean_accuracy']
    gap = 100 * (confidence - accuracy)
    side = 'above' if gap > 0 else 'below'
    certainty = (
        'The two 95 % intervals do not overlap.'
        if intervals_are_apart(own, held_out)
        else 'The 95 % intervals overlap, so the difference can be chance.'
    )
    return (
        f"On the teacher's own training images T = {format_temperature(own)}, {ratio:.2f} times "
        f'the T of held-out images, {format_temperature(held_out)}. {certainty} A student that '
        'learns from these images is taught by scores that are calibrated for images which the '
        f'teacher has not seen: at T = {held_out.temperature:.3f} their mean confidence is '
        f'{100 * confidence:.1f} %, {abs(gap):.1f} points {side} the accuracy of '
        f'{100 * accuracy:.1f} %. The T of its own training images would hide how wrong the '
        'teacher is on others: use that of held-out images.'
    )


def _parameters(result: CalibratorResult) -> str:
    parameters = {} if result.fit is None else result.fit.parameters
    if len(parameters) > _MAX_SHOWN or any(isinstance(p, list) for p in parameters.values()):
        return ''
    stopped = ', stopped at a bound' if result.fit is not None and result.fit.at_bound else ''
    return ', '.join(f'{name} = {value:.3f}' for name, value in parameters.items()) + stopped


def _points(gap: float) -> str:
    return '–' if math.isnan(gap) else f'{100 * gap:+.1f}'
