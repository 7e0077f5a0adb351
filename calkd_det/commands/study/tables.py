"""A study's tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from calkd_det.commands.pages import table
from calkd_det.commands.study.design import FITTED, Cell
from calkd_det.commands.study.outcomes import OutcomeFindings, outcome_tables
from calkd_det.commands.study.power import smallest_difference
from calkd_det.commands.study.relations import Relation
from calkd_det.commands.study.results import Findings, degrees_per_pair
from calkd_det.commands.study.rows import Row
from calkd_det.commands.study.selection import Selection
from calkd_det.commands.study.statistics import contrast_factor, mean_interval
from calkd_det.commands.study.wording import ends, percent, points


def tables(selection: Selection, found: Findings, outcomes: Mapping[str, OutcomeFindings]) -> str:
    """Return the tables of cells, comparisons, teachers and what these explain."""
    parts = [
        'Student, figures of the last epoch in percent, mean over seeds; in brackets the '
        '95 % t interval of the mean.',
        cell_table(selection),
    ]
    if found.differences:
        parts += [
            'Paired differences of mAP in points: the same seed on both sides, that is the same '
            'initial weights and the same images in the same order. 95 % t interval; p after '
            "Holm's correction for all tests of the study, which decides what is shown. Told: the "
            'smallest true difference that so many seeds tell from zero with power 0.8, before the '
            'correction.',
            difference_table(selection, found),
        ]
    if outcomes:
        parts += outcome_tables(selection, outcomes)
    if found.relations:
        parts += [
            "What a teacher's figure explains of its student's mAP (mean over seeds): R² and slope "
            'of a straight line by least squares, with the 95 % t interval of the slope; p as '
            'above.',
            relation_table(found.relations),
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
    metrics = selection.study.metrics
    rows = [['cell', 'T', 'seeds', *metrics]]
    for cell in selection.study.cells.values():
        found = selection.cells[cell.name]
        rows.append(
            [
                cell.name,
                _used_calibrator(cell, found.values()),
                f'{len(found)} of {len(cell.seeds)}',
                *(_mean(selection.values(cell.name, name)) for name in metrics),
            ]
        )
    return table(rows)


def difference_table(selection: Selection, found: Findings) -> str:
    """Return a table of paired differences."""
    spread = found.spread
    factors = {c.name: contrast_factor(c.of, c.to) for c in selection.study.comparisons}
    rows = [['comparison', 'points', '95 % interval', 'seeds higher', 'p (Holm)', 'told', 'shown']]
    for name, d in found.differences.items():
        p, told = '', ''
        shown = ('higher' if d.mean > 0 else 'lower') if d.shown else 'no'
        if d.interval is not None:
            p = _p_text(d.adjusted_p)
            if not spread.uneven and factors[name] > 0:
                per_pair = degrees_per_pair(selection, spread)
                least = smallest_difference(spread.sd * factors[name], d.count, per_pair)
                told = f'{100 * least:.2f}'
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


def relation_table(relations: Mapping[str, Relation | None]) -> str:
    """Return a table of what predicts the students."""
    rows = [["teacher's", 'R²', 'slope', '95 % interval', 'p (Holm)', 'shown']]
    for name, line in relations.items():
        if line is None:
            rows.append([name, '', '', '', '', 'no'])
            continue
        slope, low, high = (
            f'{value:+.3f}'.replace('-', '−') for value in (line.slope, *line.slope_interval)
        )
        shown = ('rises' if line.slope > 0 else 'falls') if line.shown else 'no'
        p = _p_text(line.adjusted_p)
        rows.append([name, f'{line.r_squared:.2f}', slope, f'{low} to {high}', p, shown])
    return table(rows)


def _used_calibrator(cell: Cell, rows: Iterable[Row]) -> str:
    if cell.teacher is None:
        return ''
    if cell.calibrator is not None:
        kinds = {_parameters(row['teacher'].get('calibrator', {})) for row in rows}
        return str(cell.calibrator['type']) + ''.join(sorted(kinds))
    if cell.temperature != FITTED:
        return f'{cell.temperature:g}'
    used = sorted({row['teacher']['T'] for row in rows})
    return 'fitted' + ''.join(f', {value:.2f}' for value in used)


def _parameters(fitted: Mapping[str, float | list[float]]) -> str:
    """Return fitted numbers for a table; of lists the range."""
    texts = []
    for name, value in fitted.items():
        ends = [min(value), max(value)] if isinstance(value, list) else [value]
        texts.append(f', {name} = {" to ".join(f"{end:.2f}" for end in ends)}'.replace('-', '−'))
    return ''.join(texts)


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
