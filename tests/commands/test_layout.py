"""Commands do not import each other, and the library does not import commands."""

from __future__ import annotations

import ast
from pathlib import Path

import calkd_det

ROOT = Path(calkd_det.__file__).parent
SHARED = {'engine', 'machine', 'pages', 'random_weights'}


def imported(path: Path) -> set[str]:
    """Names of the modules that a file imports, at its top or in a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text('utf-8'))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f'{node.module}.{alias.name}' for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def commands_in(names: set[str]) -> set[str]:
    parts = [name.split('.') for name in names if name.startswith('calkd_det.commands.')]
    return {part[2] for part in parts}


def test_no_command_imports_another() -> None:
    files = sorted((ROOT / 'commands').rglob('*.py'))
    assert len(files) > 20
    for path in files:
        own = path.relative_to(ROOT / 'commands').parts[0].removesuffix('.py')
        assert commands_in(imported(path)) <= SHARED | {own}, path


def test_the_library_imports_no_command_and_no_command_line() -> None:
    for path in sorted(ROOT.rglob('*.py')):
        relative = path.relative_to(ROOT)
        if relative.parts[0] in ('commands', '.mim') or relative.name == '__main__.py':
            continue
        names = imported(path)
        assert not commands_in(names), path
        assert not any(name.startswith('calkd_cli') for name in names), path
