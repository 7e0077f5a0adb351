"""The report says what the rows say, and claims no more than their intervals."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import made_up
import pytest
from scipy import stats

from calkd_det.commands.study.design import Study
from calkd_det.commands.study.power import smallest_difference
from calkd_det.commands.study.report import NOT_YET, PARTS, write_reports
from calkd_det.commands.study.results import find, temperature_shifts
from calkd_det.commands.study.rows import append_row
from calkd_det.commands.study.selection import select
from calkd_det.commands.study.wording import points
from calkd_det.errors import CalKDError, ConfigError

GAINS = {
    'calibrated, T = 1': 0.02,
    'calibrated, T = 2': 0.021,
    'calibrated, T = 0.5': 0.01,
    'over-confident, T = 1': 0.005,
    'over-confident, T = 2': 0.005,
}


def block(study: Study, part: str) -> str:
    begin, end = (f'<!-- {word} {study.name} {part} -->' for word in ('begin', 'end'))
    return study.page.read_text('utf-8').split(begin)[1].split(end)[0].strip()


def cells(text: str, name: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f'| {name} '))
    return [cell.strip() for cell in line.strip('|').split('|')]


def test_without_rows_the_page_says_so(tmp_path: Path) -> None:
    study = made_up.study(tmp_path)
    assert write_reports([study]) == [study.page]
    assert {block(study, part) for part in PARTS} == {NOT_YET}


def test_the_numbers_are_those_of_the_rows(tmp_path: Path) -> None:
    study = made_up.study(tmp_path)
    made_up.write_rows(study, GAINS)
    files = write_reports([study])
    assert {path.name for path in files} == {
        'made-up.md',
        *(f'made-up-{name}.png' for name in ('temperature', 'paired', 'reliability')),
    }
    assert all(path.stat().st_size > 10_000 for path in files if path.suffix == '.png')
    tables = block(study, 'tables')
    values = select(study).values('calibrated, T = 1')
    assert list(values) == made_up.SEEDS
    mean = 100 * sum(values.values()) / 5
    assert cells(tables, 'calibrated, T = 1')[1:3] == ['1', '5 of 5']
    assert cells(tables, 'calibrated, T = 1')[3].startswith(f'{mean:.1f} (')
    found = find(select(study))
    gain = found.differences['calibrated, T = 1 − alone']
    shown = cells(tables, 'calibrated, T = 1 − alone')
    assert shown[1] == f'+{100 * gain.mean:.2f}'
    told = 100 * smallest_difference(2**0.5 * found.spread.sd, 5, 6)
    assert shown[3:] == ['5 of 5', '< 0.001', f'{told:.2f}', 'higher']
    # Fitted T with its interval, held out and on the teacher's own images.
    assert cells(tables, 'over-confident')[1:5] == [
        '25.0',
        '1.90 (1.85 to 1.96)',
        '0.80 (0.75 to 0.86)',
        '9.00 %',
    ]
    runs = block(study, 'runs')
    assert '35 of 35 student runs' in runs
    assert '35 student runs, 60 to 64 s each, 62 s on average' in runs
    assert 'device: abacus' in runs


@pytest.mark.usefixtures('undrawn')
def test_a_difference_is_claimed_only_where_its_corrected_p_value_allows_it(tmp_path: Path) -> None:
    study = made_up.study(tmp_path)
    made_up.write_rows(study, GAINS, noise=0.003)
    write_reports([study])
    answer = block(study, 'answer')
    lines = answer.splitlines()
    tests = find(select(study)).differences.values()
    for comparison, found in zip(study.comparisons, tests):
        (line,) = (line for line in lines if f'({points(found.mean)} points' in line)
        claims = '**higher**' in line or '**lower**' in line
        assert claims == (found.adjusted_p < 0.05)
        assert claims != ('**no difference shown**' in line)
        assert comparison.of[0] in line
    assert {found.shown for found in tests} == {True, False}
    assert 'over-confident is **over-confident** on held-out images' in answer
    assert 'calibrated: neither over- nor under-confidence shown' in answer
    assert re.search(r'all 3 tests of this study, \d of which', answer)
    told = r'\d\.\d\d points for two single cells with 5 seeds \(0\.5 points would take \d+\)'
    assert re.search(told, answer)


def test_the_same_rows_give_the_same_files_again(tmp_path: Path) -> None:
    study = made_up.study(tmp_path)
    made_up.write_rows(study, GAINS)
    files = write_reports([study])
    before = {path: path.read_bytes() for path in files}
    # The order in which runs ended is nobody's business.
    lines = study.results.read_text().splitlines()
    study.results.write_text('\n'.join([*lines[:2], *lines[:1:-1]]) + '\n')
    assert write_reports([study]) == files
    assert {path: path.read_bytes() for path in files} == before


@pytest.mark.usefixtures('undrawn')
def test_nothing_but_the_rows_is_read(tmp_path: Path) -> None:
    study = made_up.study(
        tmp_path, student=dict(name='small', config='gone.py'), results=str(tmp_path / 'r.jsonl')
    )
    made_up.write_rows(study, GAINS)
    assert not study.work_dir.exists()
    write_reports([study])
    assert '35 of 35' in block(study, 'runs')


@pytest.mark.usefixtures('undrawn')
def test_an_unfinished_study_says_so_and_pairs_what_is_there(tmp_path: Path) -> None:
    study = made_up.study(tmp_path)
    made_up.write_rows(study, GAINS)
    lines = study.results.read_text().splitlines()
    study.results.write_text('\n'.join(line for line in lines if 'alone 4' not in line) + '\n')
    write_reports([study])
    assert 'Unfinished: 34 of 35 student runs.' in block(study, 'answer')
    assert cells(block(study, 'tables'), 'calibrated, T = 1 − alone')[3] == '4 of 4'


@pytest.mark.usefixtures('undrawn')
def test_prose_around_the_blocks_is_kept(tmp_path: Path) -> None:
    study = made_up.study(tmp_path, page=str(tmp_path / 'page.md'))
    marks = [f'<!-- begin made-up {part} --><!-- end made-up {part} -->' for part in PARTS]
    study.page.write_text('# Mine\n\n' + '\n\nwords\n\n'.join(marks))
    made_up.write_rows(study, GAINS)
    write_reports([study])
    text = study.page.read_text()
    assert text.startswith('# Mine\n')
    assert text.count('\n\nwords\n\n') == 3
    assert '](runs/figures/made-up-paired.png)' in text
    study.page.write_text('# Mine\n')
    with pytest.raises(CalKDError, match='must have one <!-- begin made-up answer -->'):
        write_reports([study])


def test_figures_that_a_study_names_are_in_its_table(tmp_path: Path) -> None:
    metrics = dict(mAP='coco/bbox_mAP', AP75='coco/bbox_mAP_75')
    study = made_up.study(tmp_path, metrics=metrics, figures=[])
    made_up.write_rows(study, GAINS)
    write_reports([study])
    table = block(study, 'tables')
    assert cells(table, 'cell') == ['cell', 'T', 'seeds', 'mAP', 'AP75']
    study = dataclasses.replace(study, metrics={**metrics, 'D-ECE': 'calibration/D-ECE_IoU50'})
    with pytest.raises(ConfigError, match="names 'D-ECE', but the row alone 0 base of 'alone'"):
        write_reports([study])


def test_only_what_the_study_compares_is_shown_in_the_figure_of_temperatures(
    tmp_path: Path,
) -> None:
    comparisons = [dict(of='calibrated, T = 0.5', to='calibrated, T = 1')]
    study = made_up.study(tmp_path, comparisons=comparisons)
    made_up.write_rows(study, GAINS)
    found = find(select(study))
    shifts = temperature_shifts(select(study), found)
    assert shifts['calibrated'][0.5] is found.differences['calibrated, T = 0.5 − calibrated, T = 1']
    assert shifts['calibrated'][0.5].shown
    assert {t for by_t in shifts.values() for t in by_t} == {0.5, 2.0}
    other = shifts['calibrated'][2.0]
    assert other.interval is not None
    assert not other.shown


@pytest.mark.usefixtures('undrawn')
def test_students_are_averaged_over_the_seeds_that_all_of_them_have(tmp_path: Path) -> None:
    """Else a teacher would gain by the luck of a seed that the others have not run yet."""
    study = across_study(tmp_path, 6)
    for number in range(6):
        name = f't{number}'
        row = made_up.teacher_row(name, name, 0.2 + 0.01 * number, 1.0, 0.01 * (number + 1))
        append_row(study.results, row)
        for seed in range(5 if number == 5 else 3):
            value = 0.2 + 0.01 * (number * 5 % 3) + 0.1 * seed
            append_row(study.results, made_up.student_row(f'by {name}', seed, value, name, 1.0))
    line = find(select(study)).relations['ECE']
    expected = stats.linregress(range(1, 7), [30 + number * 5 % 3 for number in range(6)])
    assert line.slope == pytest.approx(expected.slope)


def test_fitted_parameters_are_in_the_table(tmp_path: Path) -> None:
    calibrator = dict(type='PlattScaling', parameters='fitted')
    cell = dict(name='Platt', teacher='calibrated', calibrator=calibrator, loss=made_up.KD)
    study = made_up.study(tmp_path, cells=[cell], comparisons=[], figures=[], seeds=[0])
    append_row(study.results, made_up.teacher_row('calibrated', 'calibrated', 0.3, 1.0, 0.1))
    row = made_up.student_row('Platt', 0, 0.2, 'calibrated')
    row['settings']['calibrator'] = calibrator
    row['teacher']['calibrator'] = {'a': 0.5, 'b': [-1.5, 2.0]}
    append_row(study.results, row)
    write_reports([study])
    shown = cells(block(study, 'tables'), 'Platt')[1]
    assert shown == 'PlattScaling, a = 0.50, b = −1.50 to 2.00'


@pytest.mark.usefixtures('undrawn')
def test_two_seeds_claim_nothing(tmp_path: Path) -> None:
    study = made_up.study(tmp_path, seeds=[0, 1], figures=['paired'])
    made_up.write_rows(study, GAINS, noise=0)
    write_reports([study])
    said = block(study, 'answer')
    assert '(+2.00 points, not tested, 2 of 2 seeds higher)' in said
    assert '**higher**' not in said
    assert cells(block(study, 'tables'), 'calibrated, T = 1 − alone')[2:] == [
        '', '2 of 2', '', '', 'no'
    ]  # fmt: skip


@pytest.mark.usefixtures('undrawn')
def test_two_studies_on_one_page(tmp_path: Path) -> None:
    page = str(tmp_path / 'page.md')
    studies = [made_up.study(tmp_path, page=page, name=name) for name in ('one', 'two')]
    made_up.write_rows(studies[0], GAINS)
    write_reports(studies)
    assert '35 of 35' in block(studies[0], 'runs')
    assert '35 of 35' in block(studies[1], 'runs')


@pytest.mark.usefixtures('undrawn')
def test_rows_of_an_earlier_config_are_left_out(tmp_path: Path) -> None:
    study = made_up.study(tmp_path)
    old = made_up.student_row('alone', 0, 0.9, base='old')
    append_row(study.results, old)
    # Of a teacher that was trained anew since.
    stale = made_up.student_row(
        'calibrated, T = 1', 9, 0.9, 'calibrated', 1.0, teacher_hash='earlier'
    )
    append_row(study.results, stale)
    made_up.write_rows(study, GAINS)
    selection = select(study)
    assert selection.left_out == 2
    assert selection.found == 35
    assert max(selection.values('alone').values()) < 0.3
    write_reports([study])
    assert '2 rows of an earlier config are left out' in block(study, 'runs')


@pytest.mark.usefixtures('undrawn')
def test_a_teacher_of_two_rows_is_known_by_its_students_alone(tmp_path: Path) -> None:
    study = made_up.study(tmp_path)
    for digest, value in (('one', 0.3), ('other', 0.4)):
        append_row(study.results, made_up.teacher_row('calibrated', digest, value, 1.0, 0.01))
    assert select(study).teachers == {}
    student = made_up.student_row(
        'calibrated, T = 1', 0, 0.2, 'calibrated', 1.0, teacher_hash='one'
    )
    append_row(study.results, student)
    assert select(study).teachers['calibrated']['hash'] == 'one'


def test_runs_that_are_no_pair_are_refused(tmp_path: Path) -> None:
    study = made_up.study(tmp_path)
    other = made_up.student_row('alone', 2, 0.2, order='another')
    append_row(study.results, other)
    made_up.write_rows(study, GAINS)
    with pytest.raises(ConfigError, match="seed 2 of 'calibrated, T = 1', 'alone' did not start"):
        write_reports([study])


def across_study(folder: Path, count: int) -> Study:
    config_path = __import__('calkd_det').config_path
    names = [f't{number}' for number in range(count)]
    return made_up.study(
        folder,
        teachers=[dict(name=name, config=config_path(made_up.TEACHER)) for name in names],
        cells=[dict(name=f'by {n}', teacher=n, temperature=1.0, loss=made_up.KD) for n in names],
        comparisons=[],
        figures=['across'],
        reliability=[],
    )


def test_students_are_explained_by_their_teachers(tmp_path: Path) -> None:
    study = across_study(tmp_path, 12)
    for number in range(12):
        ece = 0.01 + 0.01 * number
        value = 0.25 + 0.01 * (number * 7 % 12)
        name = f't{number}'
        append_row(study.results, made_up.teacher_row(name, name, value, 1.0, ece))
        for seed in study.cells[f'by {name}'].seeds:
            mean = 0.2 - 0.5 * ece + 0.002 * (number * 5 % 3) + 0.001 * seed
            append_row(study.results, made_up.student_row(f'by {name}', seed, mean, name, 1.0))
    found = find(select(study))
    fits = found.relations
    # No test is corrected for itself alone.
    assert len(found.tests) == 8
    assert fits['mAP'].adjusted_p > fits['mAP'].p_value
    assert fits['ECE'].r_squared > 0.95
    assert fits['ECE'].slope == pytest.approx(-0.5, abs=0.05)
    assert fits['mAP'].r_squared < 0.5
    files = write_reports([study])
    assert (study.pictures / 'made-up-across.png') in files
    answer = block(study, 'answer')
    assert "- ECE: the students' mAP **falls** with it (R² = 0.9" in answer
    assert '- mAP: **no relation shown**' in answer
    assert '- ECE explains **more** of the students than mAP' in answer
    table = block(study, 'tables')
    assert cells(table, 'ECE')[1] == f'{fits["ECE"].r_squared:.2f}'


def test_too_few_teachers_get_no_line(tmp_path: Path) -> None:
    study = across_study(tmp_path, 4)
    for number in range(4):
        name = f't{number}'
        row = made_up.teacher_row(name, name, 0.2 + 0.01 * number, 1.0, 0.01 * (number + 1))
        append_row(study.results, row)
        append_row(study.results, made_up.student_row(f'by {name}', 0, 0.1 * number, name, 1.0))
    write_reports([study])
    answer = block(study, 'answer')
    assert 'too few teachers or seeds' in answer
    assert '**' not in answer.replace('**Unfinished: 4 of 20 student runs.**', '')


@pytest.mark.usefixtures('undrawn')
def test_every_number_of_the_page_is_in_the_rows_or_follows(tmp_path: Path) -> None:
    """One student's mAP is changed, and the page with it: nothing is kept from elsewhere."""
    study = made_up.study(tmp_path)
    made_up.write_rows(study, GAINS)
    write_reports([study])
    before = block(study, 'tables')
    rows = [json.loads(line) for line in study.results.read_text().splitlines()]
    for row in rows:
        if row['name'] == 'alone':
            row['metrics']['mAP'] += 0.1
    study.results.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    write_reports([study])
    after = block(study, 'tables')
    moved = [float(cells(text, 'alone')[3].split()[0]) for text in (before, after)]
    assert moved[1] - moved[0] == pytest.approx(10, abs=0.11)
    assert cells(after, 'calibrated, T = 1 − alone')[-1] == 'lower'
    assert cells(after, 'over-confident')[1:] == cells(before, 'over-confident')[1:]
