"""The results file: JSON lines, one a finished run, that survive a kill at any time."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calkd_det.errors import ConfigError
from calkd_det.measurement.json_file import sync_folder

SCHEMA_VERSION = 1
Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Read all rows.

    A last line that a kill cut short is passed over: its run counts as not done.

    Raises:
        ConfigError: Another line is damaged, or was written by a later version.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    return _parse(path, content[: _whole_lines(content)])


def append_row(path: Path, row: Mapping[str, Any]) -> bool:
    """Append a row and have it on disk when it returns; safe among several processes.

    A last line that a kill cut short is removed first.

    Args:
        path: The results file; made if it is not there.
        row: Plain data with ``hash``; no NaN.

    Returns:
        False if a row of that hash is there already; then nothing is written.

    Raises:
        ConfigError: A line of the file is damaged.
        ValueError: The row holds what JSON does not.
    """
    line = json.dumps({'schema': SCHEMA_VERSION, **row}, allow_nan=False, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('a+b') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        content = file.read()
        end = _whole_lines(content)
        if any(known['hash'] == row['hash'] for known in _parse(path, content[:end])):
            return False
        file.truncate(end)
        file.seek(end)
        file.write(line.encode() + b'\n')
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)
    return True


def settings_key(settings: Mapping[str, Any]) -> str:
    """Return the same text for settings of a config and of a row, tuples and lists alike."""
    return json.dumps(settings, sort_keys=True)


def _whole_lines(content: bytes) -> int:
    return content.rfind(b'\n') + 1


def _parse(path: Path, content: bytes) -> list[Row]:
    rows = []
    for number, line in enumerate(content.decode('utf-8').splitlines(), 1):
        try:
            row = json.loads(line)
            version = row['schema']
            row['hash'], row['kind']
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"'{path}', line {number} is no row ({error!r}): remove it, its run is done again"
            ) from None
        if version != SCHEMA_VERSION:
            raise ConfigError(
                f"'{path}', line {number} has schema {version!r}, this CalKD-Det reads "
                f'{SCHEMA_VERSION}: upgrade it'
            )
        rows.append(row)
    return rows
