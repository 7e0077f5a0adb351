"""A study's numbers, from its rows."""

from __future__ import annotations

from collections.abc import Sequence

from calkd_det.commands.study.selection import Selection
from calkd_det.commands.study.settings import FITTED, Comparison
from calkd_det.commands.study.statistics import (
    Explained,
    PairedDifference,
    contrast_factor,
    explain,
    holm,
    mean_interval,
    residual_sd,
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


def differences(selection: Selection) -> dict[str, PairedDifference]:
    """Return the study's comparisons that have a seed on both sides, by name."""
    found = {c.name: selection.compare(c) for c in selection.study.comparisons}
    return {name: d for name, d in found.items() if d is not None}


def explained(selection: Selection) -> dict[str, Explained | None]:
    """Return what each predictor explains of the students' mAP, both in percent."""
    predictors, students = across(selection)
    names = list(students)
    means = [100 * mean_interval(list(students[name].values()))[0] for name in names]
    return {
        predictor: explain([values[name] for name in names], means)
        for predictor, values in predictors.items()
    }


def residual(selection: Selection) -> tuple[float, int]:
    """Return the residual SD of a study's cells, and its degrees of freedom."""
    return residual_sd([selection.values(name) for name in selection.study.cells])


def comparison_forms(
    selection: Selection, found: dict[str, PairedDifference], sd: float
) -> list[tuple[str, float, int]]:
    """Return name, SD and number of seeds of each form of comparisons.

    Comparisons of the same numbers of cells and of seeds are of one form.
    """
    forms: dict[tuple[float, int], list[Comparison]] = {}
    for comparison in selection.study.comparisons:
        if comparison.name in found and found[comparison.name].count > 1 and sd > 0:
            spread = sd * contrast_factor(comparison.of, comparison.to)
            forms.setdefault((spread, found[comparison.name].count), []).append(comparison)
    return [(_form(alike), spread, pairs) for (spread, pairs), alike in forms.items() if spread > 0]


def _form(alike: Sequence[Comparison]) -> str:
    if {len(alike[0].of), len(alike[0].to)} == {1}:
        return 'two single cells'
    return f'‘{alike[0].name}’{" and its like" if len(alike) > 1 else ""}'


def across(
    selection: Selection,
) -> tuple[dict[str, dict[str, float]], dict[str, dict[int, float]]]:
    """Return predictors by name and teacher, in percent, and students by teacher and seed."""
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


def temperature_series(selection: Selection) -> dict[str, dict[float, dict[int, float]]]:
    """Return mAP by teacher, T and seed."""
    series: dict[str, dict[float, dict[int, float]]] = {}
    for cell in selection.study.cells.values():
        if cell.teacher is not None and cell.temperature != FITTED:
            values = selection.values(cell.name)
            if values:
                series.setdefault(cell.teacher, {})[float(cell.temperature)] = values
    return series


def held_out_calibration(selection: Selection) -> dict[str, dict]:
    """Return each teacher's calibration on held-out images."""
    return {name: row['calibration']['held_out'] for name, row in selection.teachers.items()}


def adjusted_p_values(found: dict[str, PairedDifference]) -> dict[str, float]:
    """Return Holm's adjusted p-value of each difference."""
    return dict(zip(found, holm([d.p_value for d in found.values()])))
