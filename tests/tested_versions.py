"""Writes a row of the table of tested versions from the reports of the tests that ran with them.

python tests/tested_versions.py STACK REPORT.xml [REPORT.xml ...]
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from calkd_det.commands.pages import fill_blocks, table
from calkd_det.stack import installed_versions

PAGE = Path(__file__).resolve().parents[1] / 'docs' / 'install.md'
LIBRARIES = ('python', 'torch', 'mmengine', 'mmcv', 'mmdet', 'numpy')
OUTCOMES = ('passed', 'failed', 'skipped')
HEAD = ('command', 'Python', *LIBRARIES[1:], *OUTCOMES)


def count_outcomes(reports: Iterable[str | Path]) -> Counter[str]:
    """Count the tests of all reports in JUnit's format by what came of them."""
    counts = Counter(dict.fromkeys(OUTCOMES, 0))
    for report in reports:
        for suite in ElementTree.parse(report).getroot().iter('testsuite'):
            number = {
                key: int(suite.get(key)) for key in ('tests', 'failures', 'errors', 'skipped')
            }
            failed = number['failures'] + number['errors']
            counts['failed'] += failed
            counts['skipped'] += number['skipped']
            counts['passed'] += number['tests'] - number['skipped'] - failed
    return counts


def with_row(page: str, stack: str, versions: Mapping[str, str], counts: Counter[str]) -> str:
    """Return the page with the row of a stack, in the place of the one that it has."""
    command = f'`make test STACK={stack}`'
    block = page.split('<!-- begin versions -->')[1].split('<!-- end versions -->')[0]
    rows = [
        [cell.strip() for cell in line.strip('|').split(' | ')]
        for line in block.strip().splitlines()[2:]
    ]
    row = [command, *map(versions.__getitem__, LIBRARIES)]
    row += [f'{counts[outcome]:,}' for outcome in OUTCOMES]
    rows = sorted([*(other for other in rows if other[0] != command), row])
    return fill_blocks(page, {'versions': table([HEAD, *rows], texts=len(LIBRARIES) + 1)})


if __name__ == '__main__':
    name, *files = sys.argv[1:]
    content = with_row(PAGE.read_text('utf-8'), name, installed_versions(), count_outcomes(files))
    PAGE.write_text(content, encoding='utf-8')
