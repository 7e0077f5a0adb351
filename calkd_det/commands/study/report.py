"""Write a study's blocks on its page, and its figures, from the rows alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from calkd_det.commands.pages import fill_blocks
from calkd_det.commands.study.design import Study
from calkd_det.commands.study.figures import (
    plot_across,
    plot_differences,
    plot_reliabilities,
    plot_temperatures,
)
from calkd_det.commands.study.outcomes import OutcomeFindings, find_outcomes, unit_of
from calkd_det.commands.study.primary import (
    EXPLORATION,
    plan_text,
    primary_text,
    summary_text,
    words,
)
from calkd_det.commands.study.results import (
    Findings,
    across,
    comparison_forms,
    degrees_per_pair,
    find,
    held_out_calibration,
    temperature_series,
    temperature_shifts,
)
from calkd_det.commands.study.selection import Selection, select
from calkd_det.commands.study.tables import tables, teacher_table
from calkd_det.commands.study.wording import (
    difference_sentence,
    family_sentence,
    power_sentence,
    relation_sentence,
    rivals_sentence,
    spread_sentence,
    temperature_sentence,
)
from calkd_det.measurement.teacher_calibration import bins_from

PARTS = ('answer', 'tables', 'figures', 'runs')
SUMMARY = 'summary'
NOT_YET = '*Not yet run.*'


def write_reports(studies: Sequence[Study]) -> list[Path]:
    """Fill the blocks ``NAME answer``, ``NAME tables``, ``NAME figures`` and ``NAME runs``.

    A study with a primary comparison has a block ``NAME summary`` too, which may be on another
    page. A page that is not there yet is made of these blocks alone.

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
        found, outcomes = find(selection), find_outcomes(selection)
        figures = draw(selection, found, outcomes)
        names = {}
        for name, figure in figures.items():
            study.pictures.mkdir(parents=True, exist_ok=True)
            path = study.pictures / f'{study.name}-{name}.png'
            figure.savefig(path)
            written.append(path)
            names[name] = Path(os.path.relpath(path, study.page.parent)).as_posix()
        pages = {study.page: compose(selection, found, outcomes, names)}
        if study.primary is not None:
            block = {f'{study.name} {SUMMARY}': summary_text(selection, found)}
            pages[study.summary_page] = {**pages.get(study.summary_page, {}), **block}
        for path, blocks in pages.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            page = path.read_text('utf-8') if path.is_file() else new_page(studies, path)
            path.write_text(fill_blocks(page, blocks), 'utf-8')
            written.append(path)
    return list(dict.fromkeys(written))


def new_page(studies: Iterable[Study], path: Path) -> str:
    """Return a page of the empty blocks that studies have on it."""
    lines = []
    for study in studies:
        parts = [*PARTS] if study.page == path else []
        if study.primary is not None and study.summary_page == path:
            parts.insert(0, SUMMARY)
        if parts:
            lines.append(f'# {study.title}\n')
        lines += [
            f'<!-- begin {study.name} {part} -->\n<!-- end {study.name} {part} -->\n'
            for part in parts
        ]
    return '\n'.join(lines)


def compose(
    selection: Selection,
    found: Findings,
    outcomes: Mapping[str, OutcomeFindings],
    figures: dict[str, str],
) -> dict[str, str]:
    """Return the content of a study's blocks, by the block's name.

    Args:
        selection: The study's rows.
        found: What they show.
        outcomes: What they show of other outcomes than mAP.
        figures: Paths of its figures, relative to the page, by kind.
    """
    study = selection.study
    if not selection.found:
        parts = dict.fromkeys(PARTS, NOT_YET)
        if study.primary is not None:
            parts['answer'] = f'{NOT_YET}\n\n{plan_text(study)}'
        if selection.teachers:
            parts['tables'] = teacher_table(selection)
    else:
        parts = {
            'answer': answer(selection, found),
            'tables': tables(selection, found, outcomes),
            'figures': '\n\n'.join(
                f'![{study.title}: {CAPTIONS[name]}]({path})' for name, path in figures.items()
            )
            or 'None yet.',
            'runs': runs_text(selection),
        }
    return {f'{study.name} {part}': text for part, text in parts.items()}


def answer(selection: Selection, found: Findings) -> str:
    """Return what the study shows, in sentences that follow from its corrected p-values."""
    study = selection.study
    lines = [] if study.primary is None else [f'{plan_text(study)}\n']
    if selection.found < selection.wanted:
        lines.append(
            f'**Unfinished: {selection.found} of {selection.wanted} student runs.** What follows '
            'is of the seeds that are there.\n'
        )
    exploration = study.comparisons
    if study.primary is not None:
        lines += [f'{primary_text(selection, found)}\n', f'{EXPLORATION}\n']
        if study.primary.metric == 'mAP':
            exploration = exploration[1:]
    lines += [
        f'- {_confidence(name, fit)}'
        for name, fit in held_out_calibration(selection).items()
        if not study.reliability or name in study.reliability
    ]
    lines += [
        f'- {difference_sentence(words(comparison.of), words(comparison.to), difference)}'
        for comparison in exploration
        if (difference := found.differences.get(comparison.name))
    ]
    lines += [f'- {relation_sentence(name, line)}' for name, line in found.relations.items()]
    lines += [f'- {rivals_sentence(rivalry)}' for rivalry in found.rivals]
    if found.tests:
        shown = sum(test.shown for test in found.tests)
        lines.append(f'- {family_sentence(len(found.tests), shown)}')
    spread = found.spread
    forms = comparison_forms(selection, found.differences, spread.sd)
    if forms:
        lines.append(f'- {spread_sentence(spread)}')
    if forms and not spread.uneven:
        per_pair = degrees_per_pair(selection, spread)
        lines.append(f'- {power_sentence(study.target, forms, per_pair)}')
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


def draw(
    selection: Selection, found: Findings, outcomes: Mapping[str, OutcomeFindings]
) -> dict[str, Figure]:
    """Draw the study's figures, by kind; those without anything to show are left out."""
    study = selection.study
    figures = {}
    if 'temperature' in study.figures and (series := temperature_series(selection)):
        fitted = {name: fit['temperature'] for name, fit in held_out_calibration(selection).items()}
        alone = next(
            (selection.values(c.name) for c in study.cells.values() if c.teacher is None), {}
        )
        figures['temperature'] = plot_temperatures(
            series, temperature_shifts(selection, found), alone, fitted
        )
    if 'across' in study.figures:
        predictors, students = across(selection)
        if students:
            figures['across'] = plot_across(predictors, students, found.relations)
    if found.primary is not None:
        outcome = outcomes.get(study.primary.metric)  # None for mAP and its kin
        if outcome is not None:
            differences = {**outcome.differences, study.primary.comparison.name: found.primary}
            measure = f'{study.primary.metric} in {unit_of(study.primary.metric)}'
            figures['primary'] = plot_differences(differences, study.title, measure)
    if 'paired' in study.figures and found.differences:
        figures['paired'] = plot_differences(found.differences, study.title)
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
    'primary': 'paired differences of the planned outcome',
    'paired': 'paired differences',
    'reliability': 'reliability of the teachers on held-out RoIs',
}


def _distinct(values: Iterable[str]) -> str:
    return '; '.join(dict.fromkeys(values))


def _confidence(name: str, held_out: Mapping[str, Any]) -> str:
    """Return a sentence on a teacher's confidence."""
    over, under = (held_out['at']['1'][part] for part in ('ece_over', 'ece_under'))
    return temperature_sentence(name, held_out['temperature'], held_out['interval'], over, under)
