"""Writes a study's blocks on its page, and its figures, from the rows alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from calkd_det.commands.demo.blocks import fill_blocks
from calkd_det.commands.demo.markdown import table
from calkd_det.commands.study.figures import (
    plot_across,
    plot_differences,
    plot_reliabilities,
    plot_temperatures,
)
from calkd_det.commands.study.measure_teacher import bins_from
from calkd_det.commands.study.rows import Row
from calkd_det.commands.study.selection import Selection, select
from calkd_det.commands.study.settings import FITTED, Comparison, Study
from calkd_det.commands.study.statistics import (
    Explained,
    PairedDifference,
    contrast_factor,
    explain,
    holm,
    mean_interval,
    paired_difference,
    pairs_needed,
    residual_sd,
    smallest_difference,
)
from calkd_det.commands.study.wording import (
    Power,
    chance_sentence,
    difference_sentence,
    ends,
    excludes_zero,
    explained_sentence,
    percent,
    points,
    power_sentence,
    rivals_sentence,
    temperature_sentence,
)

PARTS = ('answer', 'tables', 'figures', 'runs')
NOT_YET = '*Not yet run.*'
# What a teacher's row gives to predict its students by; the first one is the paper's.
PREDICTORS = {
    'ECE': ('at', 'ece'),
    'ECE_o': ('at', 'ece_over'),
    'ECE_u': ('at', 'ece_under'),
    'ACE': ('at', 'ace'),
    'mAP': ('metrics', 'mAP'),
    'RoI accuracy': ('at', 'mean_accuracy'),
}


def write_reports(studies: Sequence[Study]) -> list[Path]:
    """Fills the blocks ``NAME answer``, ``NAME tables``, ``NAME figures`` and ``NAME runs``.

    A page that is not there yet is made of these blocks alone.

    Args:
        studies: Each with its results file; what has no row yet is said to be missing.

    Returns:
        The files written: pages and figures. The same rows give the same files again.

    Raises:
        ConfigError: A results file is damaged, or two runs of a seed are no pair.
        CalKDError: A page lacks a block.
    """
    written: list[Path] = []
    for study in studies:
        selection = select(study)
        figures = draw(selection)
        names = {}
        for name, figure in figures.items():
            study.pictures.mkdir(parents=True, exist_ok=True)
            path = study.pictures / f'{study.name}-{name}.png'
            figure.savefig(path)
            written.append(path)
            names[name] = Path(os.path.relpath(path, study.page.parent)).as_posix()
        blocks = compose(selection, names)
        study.page.parent.mkdir(parents=True, exist_ok=True)
        page = study.page.read_text('utf-8') if study.page.is_file() else new_page(studies, study)
        study.page.write_text(fill_blocks(page, blocks), 'utf-8')
        written.append(study.page)
    return list(dict.fromkeys(written))


def new_page(studies: Iterable[Study], of: Study) -> str:
    """A page of empty blocks for all studies that name the same file."""
    lines = []
    for study in studies:
        if study.page == of.page:
            lines.append(f'# {study.title}\n')
            lines += [
                f'<!-- begin {study.name} {part} -->\n<!-- end {study.name} {part} -->\n'
                for part in PARTS
            ]
    return '\n'.join(lines)


def compose(selection: Selection, figures: dict[str, str]) -> dict[str, str]:
    """The content of a study's blocks, by the block's name.

    Args:
        selection: The study's rows.
        figures: Paths of its figures, relative to the page, by kind.
    """
    study = selection.study
    if not selection.found:
        parts = dict.fromkeys(PARTS, NOT_YET)
        if selection.teachers:
            parts['tables'] = teacher_table(selection)
    else:
        parts = {
            'answer': answer(selection),
            'tables': tables(selection),
            'figures': '\n\n'.join(
                f'![{study.title}: {CAPTIONS[name]}]({path})' for name, path in figures.items()
            )
            or 'None yet.',
            'runs': runs_text(selection),
        }
    return {f'{study.name} {part}': text for part, text in parts.items()}


def answer(selection: Selection) -> str:
    """What the study shows, in sentences that follow from its intervals."""
    study = selection.study
    lines = []
    if selection.found < selection.wanted:
        lines.append(
            f'**Unfinished: {selection.found} of {selection.wanted} student runs.** What follows '
            'is of the seeds that are there.\n'
        )
    lines += [
        f'- {temperature_sentence(name, fit["temperature"], fit["interval"])}'
        for name, fit in _held_out(selection).items()
        if not study.reliability or name in study.reliability
    ]
    found = differences(selection)
    lines += [
        f'- {difference_sentence(_words(comparison.of), _words(comparison.to), found[name])}'
        for comparison in study.comparisons
        if (name := comparison.name) in found
    ]
    with_interval = {name: d for name, d in found.items() if d.interval is not None}
    if len(with_interval) > 1:
        excluding = [name for name, d in with_interval.items() if excludes_zero(d.interval)]
        corrected = _holm(with_interval)
        kept = [name for name in excluding if corrected[name] < 0.05]
        lines.append(f'- {chance_sentence(len(with_interval), len(excluding))} {_kept(kept)}')
    if 'across' in study.figures:
        fits = explained(selection)
        lines += [f'- {explained_sentence(name, fit)}' for name, fit in fits.items()]
        lines += [
            f'- {rivals_sentence("ECE", fits["ECE"], name, fits[name])}'
            for name in ('mAP', 'RoI accuracy')
        ]
    sd, degrees = _residual(selection)
    if forms := _powers(selection, found, sd):
        lines.append(f'- {power_sentence(sd, degrees, study.target, forms)}')
    return '\n'.join(lines)


def tables(selection: Selection) -> str:
    """Cells, comparisons, teachers and, across teachers, explained variance."""
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
    """A table of the cells."""
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
    """A table of paired differences."""
    sd, _ = _residual(selection)
    factors = {c.name: contrast_factor(c.of, c.to) for c in selection.study.comparisons}
    corrected = _holm({name: d for name, d in found.items() if d.interval is not None})
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
    """A table of the teachers."""
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
    """A table of what predicts the students."""
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


def runs_text(selection: Selection) -> str:
    """What was run, how long it took, on what."""
    rows = selection.rows
    lines = [f'- {selection.found} of {selection.wanted} student runs']
    for kind in ('teacher', 'student'):
        seconds = [row['seconds'] for row in rows if row['kind'] == kind]
        if seconds:
            mean = sum(seconds) / len(seconds)
            lines.append(
                f'- {len(seconds)} {kind} runs, {min(seconds):.0f} to {max(seconds):.0f} s each, '
                f'{mean:.0f} s on average, {sum(seconds) / 3600:.1f} h together'
            )
    lines.append(f'- device: {_distinct(row["device"] for row in rows)}')
    versions = _distinct(
        ', '.join(f'{name} {value}' for name, value in row['versions'].items()) for row in rows
    )
    lines.append(f'- versions: {versions}')
    lines.append(f'- annotations: {_distinct(row["data"] for row in rows)}')
    if selection.left_out:
        lines.append(f'- {selection.left_out} rows of an earlier config are left out')
    return '\n'.join(lines)


def draw(selection: Selection) -> dict[str, Figure]:
    """The study's figures, by kind; those without anything to show are left out."""
    study = selection.study
    figures = {}
    if 'temperature' in study.figures and (series := _temperature_series(selection)):
        shifts = {
            teacher: {
                t: d
                for t, values in by_t.items()
                if t != 1 and 1.0 in by_t and (d := paired_difference(values, by_t[1.0]))
            }
            for teacher, by_t in series.items()
        }
        fitted = {name: fit['temperature'] for name, fit in _held_out(selection).items()}
        alone = next(
            (selection.values(c.name) for c in study.cells.values() if c.teacher is None), {}
        )
        figures['temperature'] = plot_temperatures(series, shifts, study.paper_range, alone, fitted)
    if 'across' in study.figures:
        predictors, students = _across(selection)
        if students:
            figures['across'] = plot_across(predictors, students, explained(selection))
    found = differences(selection)
    if 'paired' in study.figures and found:
        figures['paired'] = plot_differences(found, study.title)
    if 'reliability' in study.figures:
        names = [name for name in study.reliability if name in selection.teachers]
        if names:
            diagrams = {
                f'{name}: T = 1': bins_from(_held_out(selection)[name]['bins']['1'])
                for name in names
            }
            figures['reliability'] = plot_reliabilities(diagrams)
    return figures


CAPTIONS = {
    'temperature': "the student's mAP against T",
    'across': "the student's mAP against what is known of its teacher",
    'paired': 'paired differences',
    'reliability': 'reliability of the teachers on held-out RoIs',
}


def differences(selection: Selection) -> dict[str, PairedDifference]:
    """The study's comparisons that have a seed on both sides, by name."""
    found = {c.name: selection.compare(c) for c in selection.study.comparisons}
    return {name: d for name, d in found.items() if d is not None}


def explained(selection: Selection) -> dict[str, Explained | None]:
    """What each predictor explains of the students' mAP, both in percent."""
    predictors, students = _across(selection)
    names = list(students)
    means = [100 * mean_interval(list(students[name].values()))[0] for name in names]
    return {
        predictor: explain([values[name] for name in names], means)
        for predictor, values in predictors.items()
    }


def _residual(selection: Selection) -> tuple[float, int]:
    return residual_sd([selection.values(name) for name in selection.study.cells])


def _powers(selection: Selection, found: dict[str, PairedDifference], sd: float) -> list[Power]:
    """One of each form of comparison: so many cells against so many, with so many seeds."""
    forms: dict[tuple[float, int], list[Comparison]] = {}
    for comparison in selection.study.comparisons:
        if comparison.name in found and found[comparison.name].count > 1 and sd > 0:
            spread = sd * contrast_factor(comparison.of, comparison.to)
            forms.setdefault((spread, found[comparison.name].count), []).append(comparison)
    target = selection.study.target / 100
    return [
        Power(
            name=_form(alike),
            pairs=pairs,
            smallest=smallest_difference(spread, pairs),
            needed=pairs_needed(spread, target),
        )
        for (spread, pairs), alike in forms.items()
        if spread > 0
    ]


def _form(alike: Sequence[Comparison]) -> str:
    if {len(alike[0].of), len(alike[0].to)} == {1}:
        return 'two single cells'
    return f'‘{alike[0].name}’{" and its like" if len(alike) > 1 else ""}'


def _across(
    selection: Selection,
) -> tuple[dict[str, dict[str, float]], dict[str, dict[int, float]]]:
    """Predictors by name and teacher, in percent, and students by teacher and seed."""
    students: dict[str, dict[int, float]] = {}
    for cell in selection.study.cells.values():
        if cell.teacher in selection.teachers and cell.teacher not in students:
            values = selection.values(cell.name)
            if values:
                students[cell.teacher] = values
    predictors = {
        name: {
            teacher: 100 * _predictor(selection.teachers[teacher], where, key)
            for teacher in students
        }
        for name, (where, key) in PREDICTORS.items()
    }
    return predictors, students


def _predictor(row: Row, where: str, key: str) -> float:
    if where == 'metrics':
        return row['metrics'][key]
    return row['calibration']['held_out']['at']['1'][key]


def _temperature_series(selection: Selection) -> dict[str, dict[float, dict[int, float]]]:
    series: dict[str, dict[float, dict[int, float]]] = {}
    for cell in selection.study.cells.values():
        if cell.teacher is not None and cell.temperature != FITTED:
            values = selection.values(cell.name)
            if values:
                series.setdefault(cell.teacher, {})[float(cell.temperature)] = values
    return series


def _held_out(selection: Selection) -> dict[str, dict]:
    return {name: row['calibration']['held_out'] for name, row in selection.teachers.items()}


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


def _holm(found: dict[str, PairedDifference]) -> dict[str, float]:
    return dict(zip(found, holm([d.p_value for d in found.values()])))


def _p_text(value: float) -> str:
    return '< 0.001' if value < 0.001 else f'{value:.3f}'


def _kept(names: Sequence[str]) -> str:
    if not names:
        return "After Holm's correction for all of them, none is left."
    return f"After Holm's correction for all of them, there is left: {'; '.join(names)}."


def _words(names: Sequence[str]) -> str:
    return f'‘{names[0]}’' if len(names) == 1 else f'the mean of ‘{"’, ‘".join(names)}’'


def _distinct(values: Iterable[str]) -> str:
    return '; '.join(dict.fromkeys(values))
