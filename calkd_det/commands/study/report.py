"""Write a study's blocks on its page, and its figures, from the rows alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from calkd_det.commands.pages import fill_blocks
from calkd_det.commands.study.figures import (
    plot_across,
    plot_differences,
    plot_reliabilities,
    plot_temperatures,
)
from calkd_det.commands.study.results import (
    across,
    adjusted_p_values,
    comparison_forms,
    differences,
    explained,
    held_out_calibration,
    residual,
    temperature_series,
)
from calkd_det.commands.study.selection import Selection, select
from calkd_det.commands.study.settings import Study
from calkd_det.commands.study.statistics import paired_difference
from calkd_det.commands.study.tables import tables, teacher_table
from calkd_det.commands.study.wording import (
    chance_sentence,
    difference_sentence,
    excludes_zero,
    explained_sentence,
    power_sentence,
    rivals_sentence,
    temperature_sentence,
)
from calkd_det.measurement.teacher_calibration import bins_from

PARTS = ('answer', 'tables', 'figures', 'runs')
NOT_YET = '*Not yet run.*'


def write_reports(studies: Sequence[Study]) -> list[Path]:
    """Fill the blocks ``NAME answer``, ``NAME tables``, ``NAME figures`` and ``NAME runs``.

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
    """Return a page of empty blocks for all studies that name the same file."""
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
    """Return the content of a study's blocks, by the block's name.

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
    """Return what the study shows, in sentences that follow from its intervals."""
    study = selection.study
    lines = []
    if selection.found < selection.wanted:
        lines.append(
            f'**Unfinished: {selection.found} of {selection.wanted} student runs.** What follows '
            'is of the seeds that are there.\n'
        )
    lines += [
        f'- {temperature_sentence(name, fit["temperature"], fit["interval"])}'
        for name, fit in held_out_calibration(selection).items()
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
        corrected = adjusted_p_values(with_interval)
        kept = [name for name in excluding if corrected[name] < 0.05]
        lines.append(f'- {chance_sentence(len(with_interval), len(excluding))} {_kept(kept)}')
    if 'across' in study.figures:
        fits = explained(selection)
        lines += [f'- {explained_sentence(name, fit)}' for name, fit in fits.items()]
        lines += [
            f'- {rivals_sentence("ECE", fits["ECE"], name, fits[name])}'
            for name in ('mAP', 'RoI accuracy')
        ]
    sd, degrees = residual(selection)
    if forms := comparison_forms(selection, found, sd):
        lines.append(f'- {power_sentence(sd, degrees, study.target, forms)}')
    return '\n'.join(lines)


def runs_text(selection: Selection) -> str:
    """Return what was run, how long it took, on what."""
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
    """Draw the study's figures, by kind; those without anything to show are left out."""
    study = selection.study
    figures = {}
    if 'temperature' in study.figures and (series := temperature_series(selection)):
        shifts = {
            teacher: {
                t: d
                for t, values in by_t.items()
                if t != 1 and 1.0 in by_t and (d := paired_difference(values, by_t[1.0]))
            }
            for teacher, by_t in series.items()
        }
        fitted = {name: fit['temperature'] for name, fit in held_out_calibration(selection).items()}
        alone = next(
            (selection.values(c.name) for c in study.cells.values() if c.teacher is None), {}
        )
        figures['temperature'] = plot_temperatures(series, shifts, alone, fitted)
    if 'across' in study.figures:
        predictors, students = across(selection)
        if students:
            figures['across'] = plot_across(predictors, students, explained(selection))
    found = differences(selection)
    if 'paired' in study.figures and found:
        figures['paired'] = plot_differences(found, study.title)
    if 'reliability' in study.figures:
        names = [name for name in study.reliability if name in selection.teachers]
        if names:
            diagrams = {
                f'{name}: T = 1': bins_from(held_out_calibration(selection)[name]['bins']['1'])
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


def _kept(names: Sequence[str]) -> str:
    if not names:
        return "After Holm's correction for all of them, none is left."
    return f"After Holm's correction for all of them, there is left: {'; '.join(names)}."


def _words(names: Sequence[str]) -> str:
    return f'‘{names[0]}’' if len(names) == 1 else f'the mean of ‘{"’, ‘".join(names)}’'


def _distinct(values: Iterable[str]) -> str:
    return '; '.join(dict.fromkeys(values))
