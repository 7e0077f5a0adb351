"""What is installed: the package, and configs and tools where OpenMMLab's tools look for them."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import setuptools

import calkd_det

ROOT = Path(__file__).resolve().parents[1]


def tracked(*patterns: str) -> set[str]:
    """Files of the checkout that a package has to carry."""
    return {
        path.relative_to(ROOT).as_posix()
        for pattern in patterns
        for path in ROOT.glob(pattern)
        if '__pycache__' not in path.parts and '.mim' not in path.parts
    }


def run(*command: str, cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_wheel_made_from_the_source_distribution_has_everything(tmp_path: Path) -> None:
    run(sys.executable, '-m', 'build', '--no-isolation', '-o', str(tmp_path), cwd=ROOT)
    (archive,) = tmp_path.glob('*.tar.gz')
    with tarfile.open(archive) as source:
        sources = {name.partition('/')[2] for name in source.getnames()}
    # The tests are there with all that they read, not in part.
    whole = tracked(*(f'{folder}/**/*.*' for folder in ('tests', 'docs', 'configs', 'tools')))
    single = {'CITATION.cff', 'CONTRIBUTING.md', 'Makefile', 'README.md', 'mkdocs.yml'}
    assert whole | single | tracked('calkd_det/**/*.py', 'requirements/*') <= sources
    assert not [name for name in sources if '.mim' in name or '__pycache__' in name]

    (wheel,) = tmp_path.glob('*.whl')
    names = set(zipfile.ZipFile(wheel).namelist())
    assert tracked('calkd_det/**/*.py', 'calkd_cli/**/*.py') <= names
    mim = tracked('configs/**/*.py', 'configs/**/*.yml', 'tools/*.py', 'model-index.yml')
    assert len(mim) > 15
    assert {f'calkd_det/.mim/{name}' for name in mim} <= names
    assert not [name for name in names if name.startswith(('tests', 'configs', 'tools'))]

    target = tmp_path / 'site'
    run(
        *(sys.executable, '-m', 'pip', 'install', '--no-deps', '--no-index'),
        *('--target', str(target), str(wheel)),
        cwd=tmp_path,
    )
    code = (
        'import calkd_det, pathlib; '
        "path = calkd_det.config_path('mini/faster-rcnn_r18-student_fpn_12e_mini.py'); "
        f'assert pathlib.Path(path).is_relative_to({str(target)!r}), path; '
        'from mmengine.config import Config; Config.fromfile(path)'
    )
    script = (target / 'bin' / 'calkd').read_text('utf-8')
    assert 'from calkd_cli import main' in script
    run(sys.executable, '-c', f'import sys; sys.path.insert(0, {str(target)!r}); {code}', cwd='/')


@pytest.fixture
def arguments(monkeypatch: pytest.MonkeyPatch) -> dict:
    """What ``setup.py`` gives to setuptools, and its own names."""
    given: dict = {}
    monkeypatch.setattr(setuptools, 'setup', lambda **arguments: given.update(arguments))
    names = runpy.run_path(str(ROOT / 'setup.py'), run_name='__main__')
    return {**names, **given}


def test_the_version_is_that_of_the_package_everywhere(arguments: dict) -> None:
    assert arguments['version'] == calkd_det.__version__
    citation = (ROOT / 'CITATION.cff').read_text('utf-8')
    assert re.findall(r'^version: (.*)$', citation, re.MULTILINE) == [calkd_det.__version__]
    changelog = (ROOT / 'CHANGELOG.md').read_text('utf-8')
    assert re.search(r'^## (\S+)', changelog, re.MULTILINE)[1] == calkd_det.__version__


@pytest.mark.parametrize('repository', ['', 'https://example.org/some/where'])
def test_links_of_the_readme_work_on_an_index(arguments: dict, repository: str) -> None:
    text = arguments['readme_for_index'](repository)
    original = (ROOT / 'README.md').read_text('utf-8')
    links = re.findall(r'\]\(([^)]+)\)', text)
    assert all(link.startswith(('https://', '#')) for link in links)
    relative = [link for link in re.findall(r'\]\(([^)]+)\)', original) if ':' not in link]
    assert any(link.endswith('.png') for link in relative)
    for link in relative:
        assert (f'/v{calkd_det.__version__}/{link}' in text) == bool(repository)
    fences = re.compile(r'^```.*?^```', re.MULTILINE | re.DOTALL)
    assert fences.findall(text) == fences.findall(original)


def test_the_install_at_hand_has_the_mim_folder() -> None:
    mim = Path(calkd_det.__file__).parent / '.mim'
    assert (mim / 'model-index.yml').is_file()
    assert (mim / 'configs' / 'faster_rcnn').is_dir()
    assert (mim / 'tools' / 'make_mini_data.py').is_file()
