"""The folders of the package import each other in one direction."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import calkd_det

PACKAGE = Path(calkd_det.__file__).parent

ENTRY_POINTS = {'__init__', '__main__'}
BELOW = {
    'taps': set(),
    'losses': set(),
    'datasets': set(),
    'calibration': {'taps'},
    'evaluation': {'calibration', 'taps'},
    'teachers': {'calibration', 'taps'},
    'measurement': {'teachers', 'calibration', 'taps'},
    'detectors': {'losses', 'teachers', 'calibration', 'taps'},
    'hooks': {'detectors', 'losses', 'teachers', 'calibration', 'taps'},
}
BELOW['commands'] = {*BELOW, 'calkd_det'}

DATA_AND_REPORTS = (
    'PIL',
    'cv2',
    'mmdet.datasets',
    'mmdet.evaluation',
    'mmengine.config',
    'mmengine.dataset',
    'mmengine.visualization',
    'pycocotools',
    'torch.utils.data',
    'tqdm',
)


def imported_modules(path: Path, package: Path) -> Iterator[str]:
    """Yield the full name of each module or object that a file imports, at any depth of its code.

    ``from a import b`` yields ``a.b``, because ``b`` may be a module.
    """
    parts = ('calkd_det', *path.relative_to(package).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = parts[: len(parts) - node.level + 1] if node.level else ()
            prefix = '.'.join((*base, *((node.module,) if node.module else ())))
            yield from (f'{prefix}.{alias.name}' for alias in node.names)


def imports_of_package(package: Path) -> Iterator[tuple[tuple[str, ...], tuple[str, ...], str]]:
    """Yield importing module, imported module, and a sentence that names both.

    Modules are the parts of their names without ``calkd_det``. An object of the package itself,
    such as ``calkd_det.config_path``, is the module ``('calkd_det',)``.
    """
    for path in sorted(package.rglob('*.py')):
        relative = path.relative_to(package)
        if relative.parts[0] == '.mim':
            continue
        importer = relative.with_suffix('').parts
        for name in imported_modules(path, package):
            root, *imported = name.split('.')
            if root != 'calkd_det':
                continue
            if not imported or not _is_module(package / imported[0]):
                imported = ['calkd_det']
            yield importer, tuple(imported), f'{relative.as_posix()} imports {name}'


def wrong_folders(package: Path) -> list[str]:
    """Return a sentence for each import that points to a folder above or beside its own.

    The modules of the package itself, such as ``errors``, may be imported by all.
    """
    for_all = {path.stem for path in package.glob('*.py')} - ENTRY_POINTS
    sentences = []
    for importer, imported, sentence in imports_of_package(package):
        layer, target = importer[0], imported[0]
        if layer in ENTRY_POINTS or target == layer or target in for_all:
            continue
        if target not in BELOW.get(layer, set()):
            sentences.append(sentence)
    return sentences


def wrong_commands(package: Path) -> list[str]:
    """Return a sentence for each import of one command's folder by another command's."""
    folders = {path.name for path in (package / 'commands').iterdir() if path.is_dir()}
    sentences = []
    for importer, imported, sentence in imports_of_package(package):
        if importer[0] != 'commands' or imported[0] != 'commands' or len(imported) == 1:
            continue
        pair = (importer[1], imported[1])
        if folders.issuperset(pair) and pair[0] != pair[1]:
            sentences.append(sentence)
    return sentences


def _is_module(path: Path) -> bool:
    return path.is_dir() or path.with_suffix('.py').is_file()


def test_imports_point_one_way() -> None:
    assert wrong_folders(PACKAGE) == []


def test_every_folder_has_a_rule() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if (path / '__init__.py').is_file()}
    assert folders == set(BELOW)


def test_no_command_imports_another() -> None:
    assert wrong_commands(PACKAGE) == []


def test_calibration_neither_reads_data_sets_nor_writes_reports() -> None:
    found = [
        f'{path.name} imports {name}'
        for path in sorted((PACKAGE / 'calibration').glob('*.py'))
        for name in imported_modules(path, PACKAGE)
        if any(f'{name}.'.startswith(f'{module}.') for module in DATA_AND_REPORTS)
    ]
    assert found == []


@pytest.fixture
def small_package(tmp_path: Path) -> Path:
    """A package with one empty module in some of the folders."""
    for name in ('losses/kd', 'taps/base', 'commands/demo/plan', 'commands/study/plan', 'errors'):
        path = tmp_path / f'{name}.py'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


@pytest.mark.parametrize(
    'code',
    [
        'import calkd_det.losses.kd',
        'from calkd_det import losses',
        'from calkd_det.losses.kd import KDLoss',
        'from ..losses import kd',
        'def run():\n    from calkd_det.losses import kd',
        'from calkd_det import config_path',
    ],
)
def test_each_way_to_import_a_folder_is_found(small_package: Path, code: str) -> None:
    assert wrong_folders(small_package) == []
    (small_package / 'taps' / 'base.py').write_text(f'from calkd_det import errors\n{code}\n')
    (sentence,) = wrong_folders(small_package)
    assert sentence.startswith('taps/base.py imports calkd_det.')


@pytest.mark.parametrize('code', ['from ..demo import plan', 'import calkd_det.commands.demo.plan'])
def test_each_way_to_import_a_command_is_found(small_package: Path, code: str) -> None:
    (small_package / 'commands' / 'study' / 'plan.py').write_text(f'{code}\n')
    (sentence,) = wrong_commands(small_package)
    assert sentence.startswith('commands/study/plan.py imports calkd_det.commands.demo')
