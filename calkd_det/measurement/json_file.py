"""JSON files that survive a kill at any time."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any) -> None:
    """Write a file whole or not at all, and have it on disk when it returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.name}.partial')
    with partial.open('w', encoding='utf-8') as file:
        json.dump(content, file, indent=2, allow_nan=False, ensure_ascii=False)
        file.write('\n')
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def read_json(path: Path) -> Any:
    """Read a file of :func:`write_json`; None if it is not there or damaged."""
    try:
        return json.loads(path.read_text('utf-8'))
    except (OSError, ValueError):
        return None


def sync_folder(folder: Path) -> None:
    """Have the names of a folder's files on disk."""
    # Else a new name may be lost with the power although the file's content is on disk.
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
