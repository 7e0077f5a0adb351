"""The page on evidence is what the report writes from the rows that are kept with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from calkd_det.commands.study.report import write_reports
from calkd_det.commands.study.rows import read_rows
from calkd_det.commands.study.runs import expand
from calkd_det.commands.study.settings import read_study

ROOT = Path(__file__).parents[3]
STUDIES = [
    read_study(ROOT / 'configs' / 'studies' / f'{name}.py')
    for name in ('controlled', 'teachers', 'methods')
]


def test_the_page_is_that_of_its_rows(tmp_path: Path) -> None:
    page = tmp_path / 'docs' / 'evidence.md'
    page.parent.mkdir()
    kept = (ROOT / 'docs' / 'evidence.md').read_text('utf-8')
    page.write_text(kept, 'utf-8')
    places = dict(page=page, pictures=page.parent / 'evidence')
    write_reports(
        [dataclasses.replace(s, results=ROOT / s.results, **places) for s in STUDIES],
    )
    assert page.read_text('utf-8') == kept
    drawn = {path.name for path in places['pictures'].iterdir()}
    assert drawn == {path.name for path in (ROOT / 'docs' / 'evidence').glob('*.png')}


def test_every_run_of_the_studies_has_its_row_and_no_row_is_of_another() -> None:
    """By the hash, too: a change of CalKD-Det must not have runs done again."""
    wanted = {run.hash: (run.kind, run.seed, str(run.settings)) for run in expand(STUDIES)}
    rows = read_rows(ROOT / STUDIES[0].results)
    assert len(rows) == 173
    assert {r['hash']: (r['kind'], r['seed'], str(r['settings'])) for r in rows} == wanted
