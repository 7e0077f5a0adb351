"""The results file keeps every row through kills, and none twice."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from calkd_det.commands.study.rows import append_row, read_rows
from calkd_det.errors import ConfigError
from calkd_det.measurement.json_file import read_json, write_json


def row(number: int) -> dict:
    return {'hash': f'h{number}', 'kind': 'student', 'name': 'τ'}


def test_rows_come_back_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / 'new' / 'rows.jsonl'
    assert read_rows(path) == []
    assert all(append_row(path, row(number)) for number in range(3))
    assert [found['hash'] for found in read_rows(path)] == ['h0', 'h1', 'h2']
    assert read_rows(path)[0]['name'] == 'τ'
    assert path.read_bytes().count(b'\n') == 3


def test_a_row_is_there_once(tmp_path: Path) -> None:
    path = tmp_path / 'rows.jsonl'
    assert append_row(path, row(0))
    before = path.read_bytes()
    assert not append_row(path, {**row(0), 'name': 'again'})
    assert path.read_bytes() == before


@pytest.mark.parametrize('cut', [1, 10, 40])
def test_a_torn_last_line_is_dropped_and_written_over(tmp_path: Path, cut: int) -> None:
    path = tmp_path / 'rows.jsonl'
    for number in range(2):
        append_row(path, row(number))
    path.write_bytes(path.read_bytes()[:-cut])
    assert [found['hash'] for found in read_rows(path)] == ['h0']
    assert append_row(path, row(1))
    assert append_row(path, row(2))
    assert [found['hash'] for found in read_rows(path)] == ['h0', 'h1', 'h2']
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_torn_character_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / 'rows.jsonl'
    append_row(path, row(0))
    path.write_bytes(path.read_bytes() + '{"name": "τ'.encode()[:-1])
    assert len(read_rows(path)) == 1


@pytest.mark.parametrize('line', ['{"hash": "x"', '[1]', '{"schema": 1, "kind": "student"}'])
def test_another_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / 'rows.jsonl'
    append_row(path, row(0))
    path.write_text(path.read_text() + line + '\n')
    for action in (read_rows, lambda path: append_row(path, row(1))):
        with pytest.raises(ConfigError, match='line 2 is no row'):
            action(path)


def test_rows_of_a_later_version_are_refused(tmp_path: Path) -> None:
    path = tmp_path / 'rows.jsonl'
    path.write_text('{"schema": 99, "hash": "x", "kind": "student"}\n')
    with pytest.raises(ConfigError, match='has schema 99'):
        read_rows(path)


def test_no_nan_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='not JSON compliant'):
        append_row(tmp_path / 'rows.jsonl', {**row(0), 'x': float('nan')})
    assert read_rows(tmp_path / 'rows.jsonl') == []


def write_for_ever(path: Path, name: str, ready: multiprocessing.Event) -> None:
    number = 0
    while True:
        append_row(path, {'hash': f'{name} {number}', 'kind': 'x', 'pad': 'x' * 5000})
        ready.set()
        number += 1


def test_several_writers_that_are_killed_lose_and_double_nothing(tmp_path: Path) -> None:
    path = tmp_path / 'rows.jsonl'
    context = multiprocessing.get_context('fork')
    events = [context.Event() for _ in 'ab']
    writers = [
        context.Process(target=write_for_ever, args=(path, name, ready))
        for name, ready in zip('ab', events)
    ]
    for writer in writers:
        writer.start()
    for ready in events:
        assert ready.wait(30)
    time.sleep(0.3)
    for writer in writers:
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    rows = [found['hash'].split() for found in read_rows(path)]
    for name in 'ab':
        numbers = [int(number) for writer, number in rows if writer == name]
        assert numbers == list(range(len(numbers)))
        assert numbers


def test_json_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / 'folder' / 'x.json'
    assert read_json(path) is None
    write_json(path, {'a': 1})
    assert read_json(path) == {'a': 1}
    path.write_text('{"a"')
    assert read_json(path) is None
    assert [file.name for file in path.parent.iterdir()] == ['x.json']
