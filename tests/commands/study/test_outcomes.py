"""Outcomes beside mAP: the student's classifier, and further metrics of the evaluators."""

from __future__ import annotations

import json
from pathlib import Path

import made_up
import pytest

from calkd_det.commands.study.design import CLASSIFIER, Study
from calkd_det.commands.study.outcomes import find_outcomes
from calkd_det.commands.study.report import write_reports
from calkd_det.commands.study.results import find
from calkd_det.commands.study.selection import select
from calkd_det.commands.study.statistics import common_spread, paired_difference

GAINS = {'calibrated, T = 1': 0.05}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A study of seven cells whose rows have the classifier's figures."""
    made = made_up.study(tmp_path, figures=[])
    made_up.write_rows(made, {})
    made_up.write_classifiers(made, GAINS)
    return made


def table(study: Study, *head: str) -> list[list[str]]:
    """The rows of the table whose head begins with these cells, the head first."""
    found: list[list[str]] = []
    for line in study.page.read_text('utf-8').splitlines():
        cells = [cell.strip() for cell in line.strip('|').split('|')]
        if cells[: len(head)] == [*head] or (found and line.startswith('|')):
            found.append(cells)
        elif found:
            break
    return [cells for cells in found if set(cells[0]) != {'-'}]


def test_the_classifier_is_compared_like_map(study: Study) -> None:
    selection = select(study)
    found = find_outcomes(selection)
    assert list(found) == list(CLASSIFIER)
    nll = found['NLL on objects'].differences['calibrated, T = 1 − alone']
    values = {name: selection.values(name, 'NLL on objects') for name in study.cells}
    spread = common_spread([*values.values()])
    expected = paired_difference(values['calibrated, T = 1'], values['alone'], spread)
    assert (nll.mean, nll.interval) == (expected.mean, expected.interval)
    assert nll.mean == pytest.approx(-0.05, abs=0.002)
    assert nll.shown
    # mAP's own family of tests is the same without them.
    assert len(find(selection).tests) == 3


def test_p_values_are_corrected_for_the_whole_table(study: Study) -> None:
    found = find_outcomes(select(study))
    tests = [d for of in found.values() for d in of.differences.values() if d.interval]
    # Seven outcomes spread; the ECE on objects is the same for all, and is not tested.
    assert len(tests) == 7 * 3
    smallest = min(tests, key=lambda test: test.p_value)
    assert smallest.adjusted_p == pytest.approx(21 * smallest.p_value)
    same = found['ECE on objects'].differences.values()
    assert not any(test.shown or test.interval for test in same)


def test_the_table_shows_means_and_differences_beside_map(study: Study) -> None:
    write_reports([study])
    means = table(study, 'cell', 'accuracy on objects')
    assert means[0][1:] == list(CLASSIFIER)
    alone = next(row for row in means if row[0] == 'alone')
    values = select(study).values('alone', 'accuracy on objects').values()
    assert alone[1] == f'{100 * sum(values) / 5:.1f}'
    nll = select(study).values('alone', 'NLL on objects').values()
    assert alone[2] == f'{sum(nll) / 5:.3f}'
    differences = table(study, 'comparison', 'accuracy on objects')
    gain = next(row for row in differences if row[0] == 'calibrated, T = 1 − alone')
    assert gain[1].startswith('**+')
    assert gain[1].endswith(')**')
    text = study.page.read_text('utf-8')
    shown = sum(cell.startswith('**') for row in differences for cell in row)
    assert f'correction for the 21 tests of this table, {shown} of them.' in text
    assert 'Exploration: paired differences of these outcomes' in text


def test_rows_without_a_classifier_make_no_table_and_pair_with_none(study: Study) -> None:
    rows = [json.loads(line) for line in study.results.read_text().splitlines()]
    for row in rows:
        if row['kind'] == 'student' and (row['seed'] == 4 or row['name'] == 'alone'):
            del row['classifier']
    study.results.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    found = find_outcomes(select(study))['NLL on objects'].differences
    assert 'calibrated, T = 1 − alone' not in found
    assert found['m'].count == 4
    write_reports([study])
    assert table(study, 'comparison', 'accuracy on objects')

    for row in rows:
        row.pop('classifier', None)
    study.results.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    assert find_outcomes(select(study)) == {}
    write_reports([study])
    assert table(study, 'comparison', 'accuracy on objects') == []


def test_a_student_without_fixed_objects_has_the_samples_alone(study: Study) -> None:
    rows = [json.loads(line) for line in study.results.read_text().splitlines()]
    for row in rows:
        if row['kind'] == 'student':
            row['classifier']['objects'] = None
    study.results.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    found = find_outcomes(select(study))
    assert list(found) == [name for name in CLASSIFIER if name.endswith('samples')]


def test_further_metrics_of_a_study_are_outcomes_too(tmp_path: Path) -> None:
    metrics = dict(mAP='coco/bbox_mAP', AP50='coco/bbox_mAP_50', DECE='calibration/D-ECE_IoU50')
    study = made_up.study(tmp_path, figures=[], metrics=metrics)
    made_up.write_rows(study, {})
    rows = [json.loads(line) for line in study.results.read_text().splitlines()]
    for number, row in enumerate(rows):
        row['metrics']['DECE'] = 0.1 + 0.001 * (number * 5 % 7)
    study.results.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    assert list(find_outcomes(select(study))) == ['DECE']
