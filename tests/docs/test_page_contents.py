"""What README and the pages of the site tell to copy, run and look up is there and works."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from pathlib import Path

import pytest
import yaml
from mmdet.models import BaseDetector
from mmdet.registry import MODELS
from mmengine.config import Config

import calkd_det

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / 'README.md'
NUMBERS = ['Zero', 'One', 'Two', 'Three', 'Four', 'Five', 'Six', 'Seven', 'Eight', 'Nine']
PAGES = [README, ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
FENCE = re.compile(r'^```(?P<language>\w+)\n(?P<code>.*?)^```', re.MULTILINE | re.DOTALL)
FILE = re.compile(r'(?<![\w/.-])(?:configs|docs|requirements|tests|tools)/[\w./-]+\.[a-z]+\b')
# NAME=word, or several words in quotes.
VARIABLE = re.compile(r'^([A-Z]+)="?([^"$\s]+|(?<=")[^"$]+)"?$', re.MULTILINE)
LINK = re.compile(r'\]\((?P<path>(?!https?:|#)[^)#]*)#?(?P<anchor>[^)]*)\)')


def code(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a page in a language."""
    found = FENCE.finditer(page.read_text('utf-8'))
    return [block['code'] for block in found if block['language'] == language]


def commands(page: Path, name: str) -> list[list[str]]:
    """Return the words after ``name`` of each line of the shell blocks that starts with it."""
    text = '\n'.join(code(page, 'shell')).replace('\\\n', ' ')
    for variable, value in VARIABLE.findall(text):
        text = text.replace(f'${variable}', ' '.join(value.split()))
    lines = text.splitlines()
    split = [shlex.split(line, comments=True) for line in lines if line.startswith(name)]
    return [words[1:] for words in split if words[0] == name]


CONFIGS = [
    pytest.param(block, id=f'{page.stem}-{number}')
    for page in PAGES
    for number, block in enumerate(code(page, 'python'))
    if block.startswith('_base_')
]


@pytest.mark.parametrize('block', CONFIGS)
def test_configs_build(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    path = tmp_path / 'config.py'
    path.write_text(block, 'utf-8')
    detector = MODELS.build(Config.fromfile(path).model)
    assert isinstance(detector, BaseDetector)


def test_there_are_configs_to_build() -> None:
    assert len(CONFIGS) >= 10


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_python_is_python(page: Path) -> None:
    for block in code(page, 'python'):
        ast.parse(block)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_files_that_are_named_exist(page: Path) -> None:
    named = {name for name in FILE.findall(page.read_text('utf-8')) if 'FILE' not in name}
    assert not [name for name in sorted(named) if not (ROOT / name).exists()]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_calkd_takes_the_arguments_that_are_told(page: Path) -> None:
    parser = pytest.importorskip('calkd_cli.main').build_parser()
    for words in commands(page, 'calkd'):
        if words != ['--help']:
            parser.parse_args(words)


def slug(heading: str) -> str:
    """Return the anchor of a heading."""
    return re.sub(r'[\s-]+', '-', re.sub(r'[^\w\s-]', '', heading.lower())).strip('-')


def test_links_of_the_readme_lead_somewhere() -> None:
    links = list(LINK.finditer(README.read_text('utf-8')))
    assert len(links) > 5
    for link in links:
        target = ROOT / link['path'] if link['path'] else README
        assert target.exists(), link[0]
        if link['anchor']:
            headings = re.findall(r'^#+ (.*)$', target.read_text('utf-8'), re.MULTILINE)
            assert link['anchor'] in map(slug, headings), link[0]


def test_the_readme_counts_right() -> None:
    text = README.read_text('utf-8')
    first = code(README, 'python')[0]
    assert f'## {NUMBERS[len(first.splitlines()) - 1]} lines in a config' in text
    families = len(yaml.safe_load((ROOT / 'model-index.yml').read_text('utf-8'))['Import'])
    assert f'**{families} detector families**' in text
    public = [getattr(calkd_det.losses, name) for name in calkd_det.losses.__all__]
    # The bases are abstract, or of no kind.
    losses = [cls for cls in public if hasattr(cls, 'kind') and not inspect.isabstract(cls)]
    assert f'**{len(losses)} losses**' in text
