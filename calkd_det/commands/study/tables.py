"""A study's tables."""

from __future__ import annotations

from collections.abc import Iterable

from calkd_det.commands.pages import table
from calkd_det.commands.study.results import (
    adjusted_p_values,
    differences,
    explained,
    residual,
)
from calkd_det.commands.study.rows import Row
from calkd_det.commands.study.selection import Selection
from calkd_det.commands.study.settings import FITTED
from calkd_det.commands.study.statistics import (
    PairedDifference,
    contrast_factor,
    mean_interval,
    smallest_difference,
)
from calkd_det.commands.study.wording import ends, excludes_zero, percent, points


def tables(selection: Selection) -> str:
    """Return the tables of cells, comparisons, teachers and what these explain."""
    parts = [
        'Student, COCO metrics of the last epoch in percent, mean over seeds; in brackets the '
        '95 % t interval of the mean.',
        cell_table(selection),
    ]
    found = differences(selection)
    if found:
        parts += [
            'Paired differences of mAP in points: the same seed on both sides, that is the same '
            'initial weights and the same images in the same order. 95 % t interval over seeds; '
            "p after Holm's correction for all lines of the table. Told: the smallest true "
            'difference that so many seeds tell from zero with power 0.8.',
            difference_table(selection, found),
        ]
    if 'across' in selection.study.figures:
        parts += [
            "What a teacher's figure explains of its student's mAP (mean over seeds): R² of a "
            'straight line, with a 95 % percentile interval bootstrapped over teachers.',
            explained_table(selection),
        ]
    if selection.teachers:
        parts += [TEACHERS_ARE, teacher_table(selection)]
    return '\n\n'.join(parts)


TEACHERS_ARE = (
    'Teachers, on the RoIs that distillation samples: held out, and of their own training images. '
    'ECE, ACE and NLL at T = 1; in brackets the 95 % interval of the fitted T, bootstrapped over '
    'images. The last columns are of held-out RoIs.'
)


def cell_table(selection: Selection) -> str:
    """Return a table of the cells."""
    rows = [['cell', 'T', 'seeds', 'mAP', 'AP50', 'AP75']]
    for cell in selection.study.cells.values():
        found = selection.cells[cell.name]
        rows.append(
            [
                cell.name,
                '' if cell.teacher is None else _used_temperature(found.values(), cell.temperature),
                f'{len(found)} of {len(cell.seeds)}',
                *(_mean(selection.values(cell.name, name)) for name in ('mAP', 'AP50', 'AP75')),
            ]
        )
    return table(rows)


def difference_table(selection: Selection, found: dict[str, PairedDifference]) -> str:
    """Return a table of paired differences."""
    sd, _ = residual(selection)
    factors = {c.name: contrast_factor(c.of, c.to) for c in selection.study.comparisons}
    corrected = adjusted_p_values({name: d for name, d in found.items() if d.interval is not None})
    rows = [['comparison', 'points', '95 % interval', 'seeds higher', 'p (Holm)', 'told', 'shown']]
    for name, d in found.items():
        p = _p_text(corrected[name]) if name in corrected else ''
        shown = ('higher' if d.mean > 0 else 'lower') if excludes_zero(d.interval) else 'no'
        spread = sd * factors[name]
        known = d.count > 1 and spread > 0
        told = f'{100 * smallest_difference(spread, d.count):.2f}' if known else ''
        improved = f'{d.improved} of {d.count}'
        rows.append([name, points(d.mean), ends(d.interval), improved, p, told, shown])
    return table(rows)


def teacher_table(selection: Selection) -> str:
    """Return a table of the teachers."""
    rows = [
        [
            *('teacher', 'mAP', 'fitted T', 'T on own images', 'ECE', 'ECE_o', 'ECE_u', 'ACE'),
            *('NLL', 'ECE on own images', 'accuracy', 'accuracy on objects', 'background'),
        ]
    ]
    for name, row in selection.teachers.items():
        held_out, own = (row['calibration'][key] for key in ('held_out', 'training'))
        at = held_out['at']['1']
        objects = held_out['foreground']
        rows.append(
            [
                name,
                percent(row['metrics']['mAP']),
                _temperature(held_out),
                _temperature(own),
                *(f'{100 * at[key]:.2f} %' for key in ('ece', 'ece_over', 'ece_under', 'ace')),
                f'{at["nll"]:.3f}',
                f'{100 * own["at"]["1"]["ece"]:.2f} %',
                f'{100 * at["mean_accuracy"]:.1f} %',
                '' if objects is None else f'{100 * objects["accuracy"]:.1f} %',
                f'{100 * (1 - held_out["foreground_share"]):.0f} %',
            ]
        )
    return table(rows)


def explained_table(selection: Selection) -> str:
    """Return a table of what predicts the students."""
    rows = [["teacher's", 'R²', '95 % interval', 'slope', '95 % interval of the slope']]
    for name, fit in explained(selection).items():
        if fit is None:
            rows.append([name, '', '', '', ''])
            continue
        intervals = [
            '' if pair is None else f'{pair[0]:.2f} to {pair[1]:.2f}'.replace('-', '−')
            for pair in (fit.interval, fit.slope_interval)
        ]
        slope = f'{fit.slope:+.2f}'.replace('-', '−')
        rows.append([name, f'{fit.r_squared:.2f}', intervals[0], slope, intervals[1]])
    return table(rows)


def _used_temperature(rows: Iterable[Row], temperature: float | str) -> str:
    if temperature != FITTED:
        return f'{temperature:g}'
    used = sorted({row['teacher']['T'] for row in rows})
    return 'fitted' + ''.join(f', {value:.2f}' for value in used)


def _mean(values: dict[int, float]) -> str:
    if not values:
        return '–'
    mean, interval = mean_interval(list(values.values()))
    if interval is None:
        return percent(mean)
    return f'{percent(mean)} ({percent(interval[0])} to {percent(interval[1])})'


def _temperature(found: dict) -> str:
    text = f'{found["temperature"]:.2f}'
    if found['interval'] is None:
        return text
    return f'{text} ({found["interval"][0]:.2f} to {found["interval"][1]:.2f})'


def _p_text(value: float) -> str:
    return '< 0.001' if value < 0.001 else f'{value:.3f}'
