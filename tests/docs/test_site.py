"""The site builds without a warning, and a browser loads nothing of it from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import FunctionType

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What a browser fetches by itself, and the attribute that holds the address.
FETCHED = {
    **dict.fromkeys(('script', 'img', 'iframe', 'source', 'video', 'audio', 'embed'), 'src'),
    'link': 'href',
    'object': 'data',
}
# Links that tell what a page is, and fetch nothing.
DESCRIBING = {'canonical', 'next', 'prev', 'alternate', 'license'}
ELSEWHERE = re.compile(r'(https?:)?//')


class Resources(HTMLParser):
    """Collect the addresses that a browser fetches for a page, and the classes of its elements."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.classes: set[str] = set()
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or '' for name, value in attrs}
        self.tags.add(tag)
        self.classes.update(values.get('class', '').split())
        describing = tag == 'link' and set(values.get('rel', '').split()) <= DESCRIBING
        if tag in FETCHED and not describing:
            self.addresses.append(values.get(FETCHED[tag], ''))


def read(page: Path) -> Resources:
    resources = Resources()
    resources.feed(page.read_text('utf-8'))
    return resources


@pytest.fixture(scope='module')
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning of mkdocs, such as a link without a target, fails the build."""
    folder = tmp_path_factory.mktemp('site')
    done = subprocess.run(
        [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', str(folder)],
        cwd=ROOT,
        env={**os.environ, 'NO_MKDOCS_2_WARNING': '1'},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob('*.html'))
    assert len(pages) > 15
    for page in pages:
        resources = read(page)
        assert resources.addresses, page
        assert not [a for a in resources.addresses if ELSEWHERE.match(a)], page
        # Material's script fetches the first from a CDN and the second from a forge.
        assert not resources.classes & {'mermaid', 'md-source'}, page
    for sheet in site.rglob('*.css'):
        text = sheet.read_text('utf-8')
        assert not re.search(r'(@import|url\()\s*["\']?(https?:)?//', text), sheet


@pytest.mark.slow
def test_docstrings_are_translated(site: Path) -> None:
    for page in (site / 'reference').glob('*.html'):
        text = page.read_text('utf-8')
        assert not re.search(r':[a-z]+:(`|<code>)|\.\. [a-z]+::|&gt;`_', text), page
        assert '<autoref' not in text, page
    losses = read(site / 'reference' / 'losses.html')
    assert {'math', 'mfrac'} <= losses.tags
    assert 'admonition' in losses.classes
    # Doctests are highlighted as such, with a prompt of their own.
    assert 'gp' in losses.classes


@pytest.mark.slow
def test_the_reference_has_what_the_packages_export(site: Path) -> None:
    import calkd_det

    for name in ('losses', 'calibration', 'evaluation', 'hooks', 'teachers', 'taps'):
        page = 'evaluation' if name == 'hooks' else name.replace('teachers', 'detectors')
        text = (site / 'reference' / f'{page}.html').read_text('utf-8')
        package = sys.modules[f'{calkd_det.__name__}.{name}']
        for exported in package.__all__:
            if isinstance(getattr(package, exported), (type, FunctionType)):
                assert re.search(rf'id="calkd_det\.{name}\.([a-z_]+\.)?{exported}"', text), exported
