"""Say what a study was planned to answer, what came out, and what a user should do."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from calkd_det.commands.study.design import Comparison, Study
from calkd_det.commands.study.power import pairs_needed, smallest_difference
from calkd_det.commands.study.results import Findings, degrees_per_pair
from calkd_det.commands.study.selection import Selection
from calkd_det.commands.study.statistics import (
    SIGNIFICANCE,
    PairedDifference,
    contrast_factor,
)
from calkd_det.commands.study.wording import difference_sentence

EXPLORATION = (
    'Exploration, all of it: what is shown below is to be confirmed by a study that is planned '
    'for it.'
)


def plan_text(study: Study) -> str:
    """Return the question and the plan, which stand in the config before the runs."""
    comparison, metric = study.primary.comparison, study.primary.metric
    seeds = planned_seeds(study)
    return (
        f'**Question**: {study.question}\n\n'
        f'**Planned**: {seeds} seeds, to tell {study.target:g} points in the primary comparison, '
        f'{words(comparison.of)} against {words(comparison.to)} by {metric}.'
    )


def planned_seeds(study: Study) -> int:
    """Return the number of seeds that all cells of the primary comparison have."""
    comparison = study.primary.comparison
    seeds = [set(study.cells[name].seeds) for name in (*comparison.of, *comparison.to)]
    return len(set.intersection(*seeds))


def primary_text(selection: Selection, found: Findings) -> str:
    """Return the outcome of the primary comparison, with the power computation beside it."""
    study, difference = selection.study, found.primary
    if difference is None:
        return '**Primary comparison**: not yet run.'
    return (
        f'**Primary comparison**, by {study.primary.metric}: '
        f'{_sentence(study.primary.comparison, difference)} {_power(selection, found)}'
    )


def summary_text(selection: Selection, found: Findings) -> str:
    """Return question, answer and advice in a few sentences."""
    study, difference = selection.study, found.primary
    if difference is None:
        return f'**{study.question}** *Not yet run.*'
    metric = study.primary.metric
    advice = study.primary.advice.get(outcome_of(difference), '')
    seeds = planned_seeds(study)
    missing = '' if difference.count == seeds else f' *So far {difference.count} of {seeds} seeds.*'
    sentence = _sentence(study.primary.comparison, difference)
    return f'**{study.question}** By {metric}: {sentence} {advice}'.rstrip() + missing


def outcome_of(difference: PairedDifference) -> str:
    """Return ``'higher'`` or ``'lower'`` where a difference is shown, else ``'none'``."""
    if not difference.shown:
        return 'none'
    return 'higher' if difference.mean > 0 else 'lower'


def words(names: Sequence[str]) -> str:
    """Return the names of cells for a sentence."""
    return f'‘{names[0]}’' if len(names) == 1 else f'the mean of ‘{"’, ‘".join(names)}’'


def _sentence(comparison: Comparison, difference: PairedDifference) -> str:
    return difference_sentence(words(comparison.of), words(comparison.to), difference)


def _power(selection: Selection, found: Findings) -> str:
    difference, spread = found.primary, found.primary_spread
    if difference.interval is None:
        return 'Too few seeds for a test.'
    comparison, target = selection.study.primary.comparison, selection.study.target
    pooled = spread.sd * contrast_factor(comparison.of, comparison.to)
    tests = [(pooled, degrees_per_pair(selection, spread))]
    if spread.uneven:
        tests.append((statistics.stdev(difference.differences.values()), 1.0))
    strictest = SIGNIFICANCE / len(found.tests)
    levels = (SIGNIFICANCE, strictest)
    # The larger of all tests: that of the wider interval, which is the one that counts.
    least = [
        max(smallest_difference(sd, difference.count, per_pair, level) for sd, per_pair in tests)
        for level in levels
    ]
    needed = [
        max(pairs_needed(sd, target / 100, per_pair, significance=level) for sd, per_pair in tests)
        for level in levels
    ]
    wider = ' The cells do not spread alike, so this is the power of the wider interval.'
    return (
        f'These {difference.count} seeds tell a true difference of {100 * least[0]:.2f} points '
        'from zero with power 0.8 (two-sided t test, 5 %) before the correction, of '
        f'{100 * least[1]:.2f} at its strictest ({100 * strictest:.1f} %); {target:g} points would '
        f'take {needed[0]}, or {needed[1]}.'
        f'{wider if spread.uneven else ""}'
    )
