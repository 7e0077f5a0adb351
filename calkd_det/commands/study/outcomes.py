"""What a study compares its students by besides mAP: their classifier, and further metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from calkd_det.commands.pages import table
from calkd_det.commands.study.design import CLASSIFIER, METRICS, Study
from calkd_det.commands.study.results import differences_of
from calkd_det.commands.study.selection import Selection
from calkd_det.commands.study.statistics import PairedDifference, Spread, holm
from calkd_det.commands.study.wording import ends, points


@dataclass(frozen=True)
class OutcomeFindings:
    """The differences of one outcome.

    Attributes:
        spread: What neither cell nor seed explains of it.
        differences: By the comparison's name, p-values corrected for the tests of all outcomes.
    """

    spread: Spread
    differences: dict[str, PairedDifference]


def further_metrics(study: Study) -> list[str]:
    """Return the names of ``study.metrics`` that are no average precision of COCO."""
    return [name for name in study.metrics if name not in METRICS]


def unit_of(outcome: str) -> str:
    """Return what a hundredth of an outcome is called."""
    return 'hundredths' if outcome.startswith(('NLL', 'Brier')) else 'points'


def find_outcomes(selection: Selection) -> dict[str, OutcomeFindings]:
    """Test all comparisons of a study by each outcome that rows have, and correct by Holm.

    Returns:
        By the outcome's name; empty for rows without any.

    Raises:
        ConfigError: Two runs of a seed are no pair, or a row lacks a metric of the study.
    """
    found: dict[str, OutcomeFindings] = {}
    for outcome in (*CLASSIFIER, *further_metrics(selection.study)):
        if any(selection.values(name, outcome) for name in selection.study.cells):
            comparisons = selection.study.comparisons
            found[outcome] = OutcomeFindings(*differences_of(selection, comparisons, outcome))
    return _corrected(found)


def _corrected(found: Mapping[str, OutcomeFindings]) -> dict[str, OutcomeFindings]:
    tested = [
        (outcome, name, difference)
        for outcome, of_outcome in found.items()
        for name, difference in of_outcome.differences.items()
        if difference.interval is not None
    ]
    adjusted = holm([difference.p_value for *_, difference in tested])
    corrected = {outcome: dict(of_outcome.differences) for outcome, of_outcome in found.items()}
    for (outcome, name, difference), p in zip(tested, adjusted):
        corrected[outcome][name] = dataclasses.replace(difference, adjusted_p=p)
    return {
        outcome: OutcomeFindings(of_outcome.spread, corrected[outcome])
        for outcome, of_outcome in found.items()
    }


def outcome_tables(selection: Selection, found: Mapping[str, OutcomeFindings]) -> list[str]:
    """Return paragraphs and tables of the outcomes: means of each cell, and paired differences."""
    differences = [d for of_outcome in found.values() for d in of_outcome.differences.values()]
    tests = sum(difference.interval is not None for difference in differences)
    shown = sum(difference.shown for difference in differences)
    uneven = [outcome for outcome, of_outcome in found.items() if of_outcome.spread.uneven]
    wider = ''
    if uneven:
        wider = (
            f' The cells do not spread alike in {", ".join(uneven)}: its intervals are the wider '
            'ones, as above.'
        )
    parts = [
        "Student, other outcomes than mAP, mean over seeds. Accuracy, ECE and the evaluators' "
        'figures in percent, NLL in nats, Brier score summed over classes. On objects: a RoI head '
        "classifies the ground-truth boxes, a dense head its assigner's foreground. On samples: "
        'what distillation would see of the validation images.',
        _mean_table(selection, found),
    ]
    if differences:
        parts += [
            'Exploration: paired differences of these outcomes, in points (NLL and Brier score: in '
            "hundredths), with 95 % intervals as above. Bold: p < 0.05 after Holm's "
            f'correction for the {tests} tests of this table, {shown} of them.{wider}',
            _difference_table(found),
        ]
    return parts


def _mean_table(selection: Selection, found: Mapping[str, OutcomeFindings]) -> str:
    rows = [['cell', *found]]
    for cell in selection.study.cells:
        values = [list(selection.values(cell, outcome).values()) for outcome in found]
        rows.append([cell, *(_mean(own, outcome) for own, outcome in zip(values, found))])
    return table(rows)


def _difference_table(found: Mapping[str, OutcomeFindings]) -> str:
    names = dict.fromkeys(name for of in found.values() for name in of.differences)
    rows = [['comparison', *found]]
    for name in names:
        rows.append([name, *(_difference(of.differences.get(name)) for of in found.values())])
    return table(rows)


def _mean(values: list[float], outcome: str) -> str:
    if not values:
        return '–'
    mean = sum(values) / len(values)
    return f'{mean:.3f}' if unit_of(outcome) == 'hundredths' else f'{100 * mean:.1f}'


def _difference(found: PairedDifference | None) -> str:
    if found is None:
        return '–'
    text = points(found.mean)
    if found.interval is not None:
        text += f' ({ends(found.interval)})'
    return f'**{text}**' if found.shown else text
