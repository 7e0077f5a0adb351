"""The row of the tested versions says what the reports of pytest say."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import tested_versions

TESTS = """
import pytest
@pytest.mark.parametrize('number', range(3))
def test_good(number): pass
def test_bad(): assert False
@pytest.fixture
def broken(): raise ValueError
def test_broken(broken): pass
def test_skipped(): pytest.skip('no reason')
"""
VERSIONS = dict.fromkeys(tested_versions.LIBRARIES, '1.2')


def test_outcomes_are_counted_over_all_reports(tmp_path: Path) -> None:
    (tmp_path / 'test_some.py').write_text(TESTS)
    (tmp_path / 'test_one.py').write_text('def test_good(): pass')
    reports = []
    for name in ('some', 'one'):
        reports.append(tmp_path / f'{name}.xml')
        words = ['-m', 'pytest', '-q', '-p', 'no:cacheprovider', f'test_{name}.py']
        words.append(f'--junitxml={reports[-1]}')
        subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True)
    assert tested_versions.count_outcomes(reports) == dict(passed=4, failed=2, skipped=1)


def test_a_stack_has_one_row() -> None:
    page = 'Before\n\n<!-- begin versions -->\n<!-- end versions -->\n\nAfter\n'
    for stack, passed in (('current', 1000), ('classic', 3), ('current', 1234)):
        counts = Counter(passed=passed, failed=0, skipped=2)
        page = tested_versions.with_row(page, stack, VERSIONS, counts)
    lines = page.splitlines()
    assert (lines[0], lines[-1]) == ('Before', 'After')
    rows = [line for line in lines if line.startswith('| `make')]
    assert [row.split('`')[1] for row in rows] == [
        'make test STACK=classic',
        'make test STACK=current',
    ]
    assert [cell.strip() for cell in rows[1].split('|')[2:-1]] == [*['1.2'] * 6, '1,234', '0', '2']


def test_a_row_fits_into_the_page() -> None:
    page = tested_versions.PAGE.read_text('utf-8')
    counts = Counter(passed=1, failed=0, skipped=0)
    new = tested_versions.with_row(page, 'another', VERSIONS, counts)
    assert new.count('| `make test STACK=') == page.count('| `make test STACK=') + 1
