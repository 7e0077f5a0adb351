"""The pages on evidence are what the report writes from the rows that are kept with them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from calkd_det.commands.study.report import write_reports
from calkd_det.commands.study.rows import read_rows
from calkd_det.commands.study.runs import expand
from calkd_det.commands.study.settings import read_study

ROOT = Path(__file__).parents[3]
# By the page, whose pictures are in a folder of its name.
NAMES = {
    'evidence': ('controlled', 'teachers', 'methods'),
    'which-knowledge': ('knowledge_faster', 'knowledge_retina'),
}
STUDIES = {
    page: [read_study(ROOT / 'configs' / 'studies' / f'{name}.py') for name in names]
    for page, names in NAMES.items()
}


@pytest.mark.parametrize('name', STUDIES)
def test_the_page_is_that_of_its_rows(name: str, tmp_path: Path) -> None:
    page = tmp_path / 'docs' / f'{name}.md'
    page.parent.mkdir()
    kept = (ROOT / 'docs' / f'{name}.md').read_text('utf-8')
    page.write_text(kept, 'utf-8')
    places = dict(page=page, pictures=page.parent / name)
    write_reports(
        [dataclasses.replace(s, results=ROOT / s.results, **places) for s in STUDIES[name]],
    )
    assert page.read_text('utf-8') == kept
    drawn = {path.name for path in places['pictures'].iterdir()}
    assert drawn == {path.name for path in (ROOT / 'docs' / name).glob('*.png')}


def test_every_run_of_the_studies_has_its_row_and_no_row_is_of_another() -> None:
    """By the hash, too: a change of CalKD-Det must not have runs done again."""
    studies = [study for group in STUDIES.values() for study in group]
    wanted = {run.hash: (run.kind, run.seed, str(run.settings)) for run in expand(studies)}
    rows = read_rows(ROOT / studies[0].results)
    assert len(rows) == 211
    assert {r['hash']: (r['kind'], r['seed'], str(r['settings'])) for r in rows} == wanted


@pytest.mark.parametrize('path', ['README.md', 'docs/index.md'])
def test_the_gains_on_the_front_page_are_those_of_the_study(path: str) -> None:
    page = (ROOT / 'docs' / 'which-knowledge.md').read_text('utf-8')
    page = page[: page.index('### RetinaNet')]
    gains = [
        float(re.search(rf'^\| {cell} − alone +\| +\+([\d.]+) ', page, re.M)[1])
        for cell in ('classes', 'features', 'classes and features')
    ]
    text = ' '.join((ROOT / path).read_text('utf-8').split())
    classes, features, both = (f'{gain:.1f}' for gain in gains)
    assert (
        f"gained {classes} points of mAP from the teacher's classes, {features} from its features "
        f'and {both} from both'
    ) in text
