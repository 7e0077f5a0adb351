"""The pages on evidence are what the report writes from the rows that are kept with them."""

from __future__ import annotations

import dataclasses
import json
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
    'evidence': (
        *('controlled', 'teachers', 'methods', 'dense_retina', 'dense_gfl', 'unseen_images'),
        *('weight_and_temperature', 'student_calibration'),
    ),
    'which-knowledge': ('knowledge_faster', 'knowledge_retina', 'knowledge_dino'),
}
STUDIES = {
    page: [read_study(ROOT / 'configs' / 'studies' / f'{name}.py') for name in names]
    for page, names in NAMES.items()
}


def write_pages(docs: Path, results: Path = ROOT / 'docs' / 'evidence' / 'results.jsonl') -> None:
    """Make both pages again in a folder, of what is kept around their blocks."""
    docs.mkdir()
    for name in NAMES:
        kept = (ROOT / 'docs' / f'{name}.md').read_text('utf-8')
        (docs / f'{name}.md').write_text(kept, 'utf-8')
    write_reports(
        [
            dataclasses.replace(
                study,
                results=results,
                page=docs / study.page.name,
                summary_page=docs / study.summary_page.name,
                pictures=docs / study.pictures.name,
            )
            for study in [*STUDIES['evidence'], *STUDIES['which-knowledge']]
        ]
    )


def test_the_pages_are_those_of_their_rows(tmp_path: Path) -> None:
    docs = tmp_path / 'docs'
    write_pages(docs)
    for name in NAMES:
        kept = (ROOT / 'docs' / f'{name}.md').read_text('utf-8')
        assert (docs / f'{name}.md').read_text('utf-8') == kept
        drawn = {path.name for path in (docs / name).iterdir()}
        assert drawn == {path.name for path in (ROOT / 'docs' / name).glob('*.png')}


def block(page: Path, name: str) -> str:
    begin, end = f'<!-- begin {name} -->', f'<!-- end {name} -->'
    return page.read_text('utf-8').split(begin)[1].split(end)[0].strip()


@pytest.mark.usefixtures('undrawn')
def test_a_changed_row_changes_the_first_screen(tmp_path: Path) -> None:
    """The answer of a primary comparison is of the rows, on the page on evidence too."""
    results = tmp_path / 'results.jsonl'
    lines = []
    for line in (ROOT / 'docs' / 'evidence' / 'results.jsonl').read_text('utf-8').splitlines():
        row = json.loads(line)
        if row['name'] == 'classes and features' and 'neck of 32' in row['settings']['student']:
            row['metrics']['mAP'] -= 0.1
        lines.append(json.dumps(row))
    results.write_text('\n'.join(lines) + '\n', 'utf-8')
    write_pages(tmp_path / 'docs', results)
    for name in ('knowledge-faster-rcnn', 'knowledge-retinanet'):
        now = block(tmp_path / 'docs' / 'evidence.md', f'{name} summary')
        kept = block(ROOT / 'docs' / 'evidence.md', f'{name} summary')
        assert now != kept
        assert '‘classes and features’ is **lower** than ‘features’' in now
        assert now.endswith('Take features alone.')


def test_the_first_screen_has_an_answer_for_each_question() -> None:
    page = (ROOT / 'docs' / 'evidence.md').read_text('utf-8')
    first = page[: page.index('## What was asked first')]
    assert first.count('\n### ') == 5
    planned = [study for of_page in STUDIES.values() for study in of_page if study.primary]
    assert len(planned) == 8
    for study in planned:
        text = block(ROOT / 'docs' / 'evidence.md', f'{study.name} summary')
        assert f'<!-- begin {study.name} summary -->' in first
        assert text.startswith(f'**{study.question}**')
        assert '95 % interval' in text


def test_every_run_of_the_studies_has_its_row_and_no_row_is_of_another() -> None:
    """By the hash, too: a change of CalKD-Det must not have runs done again."""
    studies = [study for group in STUDIES.values() for study in group]
    wanted = {run.hash: (run.kind, run.seed, str(run.settings)) for run in expand(studies)}
    rows = read_rows(ROOT / studies[0].results)
    assert len(rows) == 445
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


def test_the_figures_on_the_page_of_losses_are_those_of_the_study() -> None:
    table = block(ROOT / 'docs' / 'evidence.md', 'dense-gfl tables')
    rows = re.findall(
        r'^\| (.+?) +\| +([+−][\d.]+) \| ([+−][\d.]+) to ([+−][\d.]+) \|', table, re.M
    )
    points = {name: (mean, low, high) for name, mean, low, high in rows}
    fitted = [value.lstrip('+') for value in points['fitted T − T = 1']]
    gains = [
        mean.lstrip('+')
        for name, (mean, *_) in points.items()
        if re.fullmatch('(difference|foreground|all), (Platt|beta) − .*', name)
    ]
    losses = [mean.lstrip('−') for name, (mean, *_) in points.items() if ', T = 1.5 − ' in name]
    assert (len(gains), len(losses)) == (6, 3)
    text = ' '.join((ROOT / 'docs' / 'losses.md').read_text('utf-8').split())
    for sentence in (
        '{} points higher than at T = 1 (95 % interval {} to {}'.format(*fitted),
        f'lower than at T = 1 with each weighting, by {min(losses)} to {max(losses)}',
        f'Platt scaling and beta calibration gain {min(gains)} to {max(gains)} over T = 1',
    ):
        assert sentence in text, sentence
