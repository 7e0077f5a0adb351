"""The one comparison that a study was planned for, and what is exploration beside it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import made_up
import numpy as np
import pytest

from calkd_det.commands.study.design import Study
from calkd_det.commands.study.power import smallest_difference
from calkd_det.commands.study.primary import outcome_of, primary_text, summary_text
from calkd_det.commands.study.report import NOT_YET, write_reports
from calkd_det.commands.study.results import find
from calkd_det.commands.study.selection import select
from calkd_det.errors import ConfigError

ADVICE = dict(higher='Take it.', lower='Leave it.', none='Do as you like.')
PRIMARY = dict(of='calibrated, T = 1', to='alone', advice=ADVICE)
QUESTION = 'Does a teacher help?'


def planned(folder: Path, primary: Any = PRIMARY, **changes: Any) -> Study:
    return made_up.study(
        folder, question=QUESTION, primary=primary, figures=[], reliability=[], **changes
    )


def block(path: Path, study: Study, part: str) -> str:
    begin, end = (f'<!-- {word} {study.name} {part} -->' for word in ('begin', 'end'))
    return path.read_text('utf-8').split(begin)[1].split(end)[0].strip()


def test_question_and_plan_are_told_before_any_run(tmp_path: Path) -> None:
    study = planned(tmp_path, target=0.4)
    write_reports([study])
    answer = block(study.page, study, 'answer')
    assert answer.startswith(NOT_YET)
    assert f'**Question**: {QUESTION}' in answer
    assert (
        '**Planned**: 5 seeds, to tell 0.4 points in the primary comparison, ‘calibrated, T = 1’ '
        'against ‘alone’ by mAP.'
    ) in answer
    assert block(study.page, study, 'summary') == f'**{QUESTION}** {NOT_YET}'


def test_the_answer_has_its_power_beside_it_and_all_else_is_exploration(tmp_path: Path) -> None:
    study = planned(tmp_path)
    made_up.write_rows(study, {'calibrated, T = 1': 0.02}, noise=0.002)
    write_reports([study])
    found = find(select(study))
    assert found.primary is found.differences['calibrated, T = 1 − alone']
    assert len(found.tests) == 3
    answer = block(study.page, study, 'answer')
    planned_part, exploration = answer.split('Exploration, all of it')
    least, strict = (
        smallest_difference(2**0.5 * found.spread.sd, 5, 6, level) for level in (0.05, 0.05 / 3)
    )
    assert '**Primary comparison**, by mAP: ‘calibrated, T = 1’ is **higher**' in planned_part
    assert f'These 5 seeds tell a true difference of {100 * least:.2f} points' in planned_part
    assert f'before the correction, of {100 * strict:.2f} at its strictest (1.7 %)' in planned_part
    assert strict > least
    assert '‘calibrated, T = 1’ is **higher**' not in exploration
    assert exploration.count('\n- ‘over-confident') + exploration.count('\n- the mean') == 2
    assert 'all 3 tests of this study' in exploration


def test_where_cells_do_not_spread_alike_the_power_is_that_of_the_wider_interval(
    tmp_path: Path,
) -> None:
    study = planned(tmp_path)
    made_up.write_rows(study, {'calibrated, T = 1': 0.02}, noise=0.002)
    selection = select(study)
    found = find(selection)
    uneven = dataclasses.replace(found.primary_spread, alike_p=0.01)
    own = np.std(list(found.primary.differences.values()), ddof=1)
    for sd in (0.0, 1.0):  # the wider is that of the differences, then that of the study
        spread = dataclasses.replace(uneven, sd=sd or own / 100)
        text = primary_text(selection, dataclasses.replace(found, primary_spread=spread))
        least = (
            smallest_difference(2**0.5 * sd, 5, 6) if sd else smallest_difference(float(own), 5, 1)
        )
        assert f'tell a true difference of {100 * least:.2f} points' in text
        assert text.endswith('so this is the power of the wider interval.')


@pytest.mark.parametrize(
    ('gain', 'outcome', 'advice'),
    [(0.02, 'higher', 'Take it.'), (-0.02, 'lower', 'Leave it.'), (0.0, 'none', 'Do as you like.')],
)
def test_the_summary_gives_the_advice_that_was_planned_for_the_outcome(
    tmp_path: Path, gain: float, outcome: str, advice: str
) -> None:
    study = planned(tmp_path)
    made_up.write_rows(study, {'calibrated, T = 1': gain})
    selection = select(study)
    found = find(selection)
    assert outcome_of(found.primary) == outcome
    text = summary_text(selection, found)
    assert text.startswith(f'**{QUESTION}** By mAP: ‘calibrated, T = 1’')
    assert '95 % interval' in text
    assert text.endswith(advice)


def test_an_unfinished_summary_says_so(tmp_path: Path) -> None:
    study = planned(tmp_path)
    made_up.write_rows(study, {})
    lines = study.results.read_text().splitlines()
    study.results.write_text('\n'.join(line for line in lines if 'alone 4' not in line) + '\n')
    selection = select(study)
    assert summary_text(selection, find(selection)).endswith('*So far 4 of 5 seeds.*')


def test_the_summary_may_stand_on_another_page(tmp_path: Path) -> None:
    first = tmp_path / 'first.md'
    first.write_text('# All\n\n<!-- begin made-up summary --><!-- end made-up summary -->\n')
    study = planned(tmp_path, summary_page=str(first))
    files = write_reports([study])
    assert {path.name for path in files} == {'first.md', 'made-up.md'}
    assert block(first, study, 'summary') == f'**{QUESTION}** {NOT_YET}'
    assert 'summary' not in study.page.read_text('utf-8')
    first.unlink()
    write_reports([study])
    assert first.read_text('utf-8').startswith('# made-up\n')


def test_the_primary_comparison_may_be_of_the_classifier(tmp_path: Path) -> None:
    primary = dict(of='over-confident, T = 2', to='alone', metric='ECE on samples')
    study = planned(tmp_path, primary, measure_students=True)
    assert study.comparisons[0].name == 'over-confident, T = 2 − alone'
    assert len(study.comparisons) == 4
    made_up.write_rows(study, {})
    made_up.write_classifiers(study, {'over-confident, T = 2': 0.05})
    found = find(select(study))
    assert found.primary.mean == pytest.approx(-0.05, abs=0.002)
    assert found.primary.shown
    # It is corrected together with all comparisons of mAP.
    assert len(found.tests) == 5
    assert found.primary.adjusted_p == pytest.approx(5 * found.primary.p_value)
    assert found.primary_spread.sd != found.spread.sd
    write_reports([study])
    answer = block(study.page, study, 'answer')
    assert (
        '**Primary comparison**, by ECE on samples: ‘over-confident, T = 2’ is **lower**' in answer
    )
    # The same cells by mAP are exploration.
    assert '- ‘over-confident, T = 2’ against ‘alone’: **no difference shown**' in answer


def test_a_comparison_that_is_listed_keeps_its_name(tmp_path: Path) -> None:
    comparisons = [dict(of='calibrated, T = 2', to='alone'), {**PRIMARY, 'name': 'mine'}]
    del comparisons[1]['advice']
    study = planned(tmp_path, comparisons=comparisons)
    assert study.primary.comparison.name == 'mine'
    assert [c.name for c in study.comparisons] == ['mine', 'calibrated, T = 2 − alone']


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(primary=PRIMARY), 'study.primary is set, but study.question is not'),
        (dict(question='Why?'), 'study.question is set, but study.primary is not'),
        (
            dict(question='Why?', primary={**PRIMARY, 'metric': 'ECE on objects'}),
            'study.primary.metric: .* need study.measure_students=True',
        ),
        (
            dict(
                question='Why?',
                primary={**PRIMARY, 'metric': 'NLL on objects'},
                measure_students=True,
            ),
            'study.primary.metric: ',
        ),
        (
            dict(question='Why?', primary={**PRIMARY, 'advice': dict(higher='x')}),
            'study.primary.advice.lower is missing',
        ),
        (dict(question='Why?', primary=dict(of='alone', to='alnoe')), "did you mean 'alone'"),
        (dict(question='', primary=PRIMARY), 'study.question must be a text'),
    ],
)
def test_a_mistake_in_the_plan_is_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        made_up.study(tmp_path, **changes)
