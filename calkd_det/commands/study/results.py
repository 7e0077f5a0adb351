"""A study's numbers, from its rows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from calkd_det.commands.study.design import Comparison
from calkd_det.commands.study.relations import Relation, Rivalry, compare_predictors, relate
from calkd_det.commands.study.selection import Selection
from calkd_det.commands.study.statistics import (
    FEWEST_SEEDS,
    PairedDifference,
    Spread,
    common_spread,
    contrast_factor,
    holm,
    paired_difference,
)

# What a teacher's row gives to predict its students by; the first one is the paper's.
PREDICTORS = {
    'ECE': 'ece',
    'ECE_o': 'ece_over',
    'ECE_u': 'ece_under',
    'ACE': 'ace',
    'mAP': 'mAP',
    'RoI accuracy': 'mean_accuracy',
}
Test = PairedDifference | Relation | Rivalry
RIVALS = (('ECE', 'mAP'), ('ECE', 'RoI accuracy'))


@dataclass(frozen=True)
class Findings:
    """All that a study tests, with p-values corrected for all of it together.

    Attributes:
        spread: What neither cell nor seed explains.
        differences: By the comparison's name; those without a common seed are missing.
        relations: By the predictor's name; None where no line can be fitted. Empty for a study
            that is not across teachers.
        rivals: Which predictor explains more.
        primary: The study's primary comparison; None where it has none or no common seed.
        primary_spread: As ``spread``, of the figure that ``primary`` is of.
    """

    spread: Spread
    differences: dict[str, PairedDifference]
    relations: dict[str, Relation | None]
    rivals: list[Rivalry]
    primary: PairedDifference | None
    primary_spread: Spread

    @property
    def tests(self) -> list[Test]:
        """Return what has a p-value."""
        found = [*self.differences.values(), *self.relations.values(), *self.rivals]
        # Of mAP it is one of the differences.
        if not any(test is self.primary for test in found):
            found.append(self.primary)
        return [test for test in found if test is not None and not math.isnan(test.p_value)]


def find(selection: Selection) -> Findings:
    """Test all comparisons and relations of a study, and correct for their number by Holm.

    Raises:
        ConfigError: Two runs of a seed are no pair.
    """
    spread, differences = differences_of(selection, selection.study.comparisons, 'mAP')
    relations, rivals = _relations(selection) if 'across' in selection.study.figures else ({}, [])
    primary, primary_spread = None, spread
    if (planned := selection.study.primary) is not None:
        name, tested = planned.comparison.name, differences
        if planned.metric != 'mAP':
            primary_spread, tested = differences_of(selection, [planned.comparison], planned.metric)
        primary = tested.get(name)
    found = Findings(spread, differences, relations, rivals, primary, primary_spread)
    tests = found.tests
    adjusted = {id(test): p for test, p in zip(tests, holm([test.p_value for test in tests]))}
    corrected = {name: _corrected(test, adjusted) for name, test in differences.items()}
    return Findings(
        spread,
        corrected,
        {name: _corrected(test, adjusted) for name, test in relations.items()},
        [_corrected(test, adjusted) for test in rivals],
        next(
            (corrected[name] for name, test in differences.items() if test is primary),
            _corrected(primary, adjusted),
        ),
        primary_spread,
    )


def differences_of(
    selection: Selection, comparisons: Sequence[Comparison], metric: str
) -> tuple[Spread, dict[str, PairedDifference]]:
    """Return the spread of a figure, and its differences by name where seeds are common."""
    spread = common_spread([selection.values(name, metric) for name in selection.study.cells])
    differences = {}
    for comparison in comparisons:
        factor = contrast_factor(comparison.of, comparison.to)
        difference = paired_difference(*selection.sides(comparison, metric), spread, factor)
        if difference is not None:
            differences[comparison.name] = difference
    return spread, differences


def comparison_forms(
    selection: Selection, found: Mapping[str, PairedDifference], sd: float
) -> list[tuple[str, float, int]]:
    """Return name, SD and number of seeds of each form of comparisons.

    Comparisons of the same numbers of cells and of seeds are of one form.
    """
    forms: dict[tuple[float, int], list[Comparison]] = {}
    for comparison in selection.study.comparisons:
        difference = found.get(comparison.name)
        if difference is not None and difference.interval is not None:
            spread = sd * contrast_factor(comparison.of, comparison.to)
            forms.setdefault((spread, difference.count), []).append(comparison)
    return [(_form(alike), spread, pairs) for (spread, pairs), alike in forms.items() if spread > 0]


def degrees_per_pair(selection: Selection, spread: Spread) -> float:
    """Return how many degrees of freedom of the residual each further seed brings."""
    seeds = {seed for rows in selection.cells.values() for seed in rows}
    return spread.degrees / (len(seeds) - 1)


def _corrected(test: Test | None, adjusted: Mapping[int, float]) -> Any:
    """Return a test with its corrected p-value by ``id``; one that has none as it is."""
    if id(test) not in adjusted:
        return test
    return dataclasses.replace(test, adjusted_p=adjusted[id(test)])


def _form(alike: Sequence[Comparison]) -> str:
    if {len(alike[0].of), len(alike[0].to)} == {1}:
        return 'two single cells'
    return f'‘{alike[0].name}’{" and its like" if len(alike) > 1 else ""}'


def across(
    selection: Selection,
) -> tuple[dict[str, dict[str, float]], dict[str, dict[int, float]]]:
    """Return predictors by name and teacher, in percent, and students by teacher and seed.

    Students are the first cell of each teacher.
    """
    students: dict[str, dict[int, float]] = {}
    for cell in selection.study.cells.values():
        if cell.teacher in selection.teachers and cell.teacher not in students:
            values = selection.values(cell.name)
            if values:
                students[cell.teacher] = values
    known = {
        name: {**row['metrics'], **row['calibration']['held_out']['at']['1']}
        for name, row in selection.teachers.items()
    }
    predictors = {
        name: {teacher: 100 * known[teacher][key] for teacher in students}
        for name, key in PREDICTORS.items()
    }
    return predictors, students


def _relations(selection: Selection) -> tuple[dict[str, Relation | None], list[Rivalry]]:
    """Return lines through the students' means, in percent, over the seeds that all have."""
    predictors, students = across(selection)
    seeds = set.intersection(*map(set, students.values())) if students else set()
    if len(seeds) < FEWEST_SEEDS:
        return dict.fromkeys(PREDICTORS), []
    means = [100 * float(np.mean([by_seed[s] for s in seeds])) for by_seed in students.values()]
    x = {name: [values[teacher] for teacher in students] for name, values in predictors.items()}
    relations = {name: relate(values, means) for name, values in x.items()}
    rivals = [
        Rivalry(
            name,
            other,
            relations[name].r_squared - relations[other].r_squared,
            compare_predictors(x[name], x[other], means),
        )
        for name, other in RIVALS
        if relations[name] is not None and relations[other] is not None
    ]
    return relations, rivals


def temperature_series(selection: Selection) -> dict[str, dict[float, dict[int, float]]]:
    """Return mAP by teacher, T and seed."""
    series: dict[str, dict[float, dict[int, float]]] = {}
    for cell in selection.study.cells.values():
        if isinstance(cell.temperature, float):
            values = selection.values(cell.name)
            if values:
                series.setdefault(cell.teacher, {})[float(cell.temperature)] = values
    return series


def temperature_shifts(
    selection: Selection, found: Findings
) -> dict[str, dict[float, PairedDifference]]:
    """Return the differences of mAP from the same teacher's T = 1, by teacher and T.

    A difference that is no comparison of the study is not tested.
    """
    tested = {(c.of, c.to): found.differences.get(c.name) for c in selection.study.comparisons}
    names = {(cell.teacher, cell.temperature): cell.name for cell in selection.study.cells.values()}
    shifts: dict[str, dict[float, PairedDifference]] = {}
    for teacher, by_t in temperature_series(selection).items():
        for t in by_t:
            pair = (names[teacher, t],), (names.get((teacher, 1.0)),)
            difference = tested.get(pair)
            if difference is None and t != 1 and 1.0 in by_t:
                difference = paired_difference(by_t[t], by_t[1.0], found.spread)
            if difference is not None:
                shifts.setdefault(teacher, {})[t] = difference
    return shifts


def held_out_calibration(selection: Selection) -> dict[str, dict]:
    """Return each teacher's calibration on held-out images."""
    return {name: row['calibration']['held_out'] for name, row in selection.teachers.items()}
