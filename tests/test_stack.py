"""An environment that does not work is refused at import, in a few lines with what to install."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ONEDL

ROOT = Path(__file__).parents[1]
IMPORT = 'import calkd_det'


def import_error(folder: Path, modules: dict[str, str], code: str = IMPORT) -> str:
    """What an import prints where modules of a folder stand before those installed."""
    for name, content in modules.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    code = f'import sys; sys.path[:0] = [{str(folder)!r}, {str(ROOT)!r}]\n{code}'
    found = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert found.returncode == 1, found.stderr
    assert len(found.stderr.splitlines()) <= 24, found.stderr
    return found.stderr.splitlines()[-1]


@pytest.mark.parametrize('module', ['torch', 'mmengine', 'mmcv', 'mmdet'])
def test_a_missing_library(tmp_path: Path, module: str) -> None:
    # Empty modules in place of the others, which take seconds to import.
    modules = dict.fromkeys(('torch.py', 'mmengine.py', 'mmcv/__init__.py', 'mmcv/ops.py'), '')
    modules.pop('mmcv/__init__.py' if module == 'mmcv' else f'{module}.py', None)
    modules[f'{module}.py'] = f'raise ModuleNotFoundError("No module named {module!r}")'
    if module == 'mmcv':
        del modules['mmcv/ops.py']
    line = import_error(tmp_path, modules)
    assert line.startswith(f"ImportError: CalKD-Det cannot import '{module}' (ModuleNotFoundError")
    assert 'pip install' in line
    assert module in line.split('pip install', 1)[1]


def test_mmcv_without_operators(tmp_path: Path) -> None:
    modules = {'torch.py': '', 'mmengine.py': '', 'mmcv/__init__.py': "__version__ = '2.1.0'\n"}
    line = import_error(tmp_path, modules)
    assert "cannot import 'mmcv.ops'" in line
    assert 'mmcv-lite' in line
    mmcv = 'onedl-mmcv==2.3.6' if ONEDL else 'mmcv==2.1.0'
    assert f'pip install --no-cache-dir {mmcv}' in line


EMPTY = ('torch.py', 'mmengine.py', 'mmcv/__init__.py', 'mmcv/ops.py', 'mmdet/__init__.py')


def test_an_mmdet_without_a_package_that_it_imports(tmp_path: Path) -> None:
    """Its ``datasets`` and ``models`` import what ``mmdet`` itself does not."""
    modules = {**dict.fromkeys(EMPTY, ''), 'mmdet/datasets.py': 'import imgaugg'}
    line = import_error(tmp_path, modules)
    assert "cannot import 'mmdet.datasets' (ModuleNotFoundError: No module named 'imgaugg')" in line
    assert 'pip install the package that has it' in line
    line = import_error(tmp_path, {'mmdet/datasets.py': '', 'mmdet/models.py': 'import shaply'})
    assert "cannot import 'mmdet.models' (ModuleNotFoundError: No module named 'shaply')" in line


@pytest.mark.parametrize(
    ('module', 'install'),
    [
        ('mmengine', 'pip install onedl-mmengine=='),
        ('mmcv/__init__', 'pip install onedl-mmcv=='),
        ('mmcv/ops', 'pip install --no-cache-dir onedl-mmcv=='),
        ('mmdet/__init__', 'pip install onedl-mmdetection=='),
        ('mmdet/datasets', 'the one of imgaug is imaug'),
    ],
)
def test_the_forks_are_named_where_one_is_installed(
    tmp_path: Path, module: str, install: str
) -> None:
    modules = {**dict.fromkeys(EMPTY, ''), f'{module}.py': "raise ImportError('broken')"}
    modules['onedl_mmengine-0.10.12.dist-info/METADATA'] = 'Name: onedl-mmengine\nVersion: 0.10.12'
    assert install in import_error(tmp_path, modules)


@pytest.mark.skipif(ONEDL, reason='this mmdet takes every mmcv')
def test_mmcv_that_mmdet_does_not_take(tmp_path: Path) -> None:
    code = f'import mmcv; mmcv.__version__ = "2.2.0"\n{IMPORT}'
    line = import_error(tmp_path, {}, code)
    assert "cannot import 'mmdet' (AssertionError: MMCV==2.2.0 is used but incompatible" in line
    assert 'mmcv==2.1.0' in line


def test_a_numpy_that_torch_was_not_built_for(tmp_path: Path) -> None:
    code = (
        'import importlib.metadata as metadata\n'
        "metadata.version = {'torch': '2.1.2+cpu', 'numpy': '2.0.1'}.get\n"
        f'{IMPORT}'
    )
    line = import_error(tmp_path, {}, code)
    assert 'torch 2.1.2+cpu is built for numpy 1, but numpy 2.0.1 is installed' in line
    assert "pip install 'numpy<2'" in line


def test_torch_2_0(tmp_path: Path) -> None:
    whole = ('mmdet/datasets.py', 'mmdet/models.py')
    modules = {**dict.fromkeys((*EMPTY, *whole), ''), 'torch.py': "__version__ = '2.0.1'"}
    line = import_error(tmp_path, modules)
    assert 'CalKD-Det needs torch >= 2.1, but this is 2.0.1' in line
