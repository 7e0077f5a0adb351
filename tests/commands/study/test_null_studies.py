"""The report's claims on simulated studies without any true difference."""

from __future__ import annotations

from types import ModuleType

import helpers
import pytest

COUNT = 150


@pytest.fixture(scope='module')
def null_studies() -> ModuleType:
    return helpers.load_tool('null_studies', 'docs/evidence')


@pytest.mark.slow
@pytest.mark.parametrize(
    'name', ['controlled', 'teachers', 'methods', 'knowledge_faster', 'student_calibration']
)
def test_one_study_in_twenty_at_most_makes_a_false_claim(
    null_studies: ModuleType, name: str
) -> None:
    """With a chance of 5 %, 15 of 150 studies or more would do so in less than one case of 100."""
    shares = null_studies.count_claims(name, COUNT, seed=7, own_noise=False)
    assert shares['false'] < 15 / COUNT
    # The simulation would notice: without the correction every fifth study or more does so.
    assert shares['uncorrected'] > 0.15


@pytest.mark.parametrize('own_noise', [False, True])
def test_simulated_studies_have_the_design_and_the_noise_of_the_rows(
    null_studies: ModuleType, own_noise: bool
) -> None:
    selection = null_studies.selection_of('teachers')
    rng = null_studies.np.random.default_rng(0)
    found = list(null_studies.null_findings(selection, 20, rng, own_noise=own_noise))
    kept = null_studies.find(selection)
    assert {len(one.tests) for one in found} == {len(kept.tests)} == {21}
    assert {one.spread.degrees for one in found} == {kept.spread.degrees}
    spreads = [one.spread.sd for one in found]
    assert sum(spreads) / 20 == pytest.approx(kept.spread.sd, rel=0.1)
    assert not any(abs(d.mean) > 0.015 for one in found for d in one.differences.values())


def test_the_figure_that_a_study_is_planned_for_is_simulated_too(null_studies: ModuleType) -> None:
    selection = null_studies.selection_of('student_calibration')
    assert selection.study.primary.metric == 'D-ECE'
    rng = null_studies.np.random.default_rng(0)
    found = list(null_studies.null_findings(selection, 20, rng, own_noise=False))
    kept = null_studies.find(selection)
    assert kept.primary.shown
    assert not any(one.primary.shown for one in found)
    spreads = [one.primary_spread.sd for one in found]
    assert sum(spreads) / 20 == pytest.approx(kept.primary_spread.sd, rel=0.2)
