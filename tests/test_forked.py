from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from forked import ForkedScript


def start(folder: Path, code: str) -> ForkedScript:
    (folder / 'script.py').write_text(code)
    with (folder / 'log').open('a') as log:
        return ForkedScript(
            [sys.executable, str(folder / 'script.py'), 'a b'],
            stdout=log,
            env={**os.environ, 'GREETING': 'hello'},
            stderr=subprocess.STDOUT,
        )


def test_a_script_has_its_words_environment_folder_and_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = """
import os, subprocess, sys
print(__name__, sys.argv[1:], os.environ['GREETING'], os.getcwd(), flush=True)
subprocess.run([sys.executable, '-c', 'print("from a process of its own")'])
sys.exit(3)
"""
    assert start(tmp_path, code).wait(60) == 3
    said = (tmp_path / 'log').read_text().splitlines()
    assert said == [f"__main__ ['a b'] hello {tmp_path}", 'from a process of its own']


def test_an_error_is_in_the_log(tmp_path: Path) -> None:
    script = start(tmp_path, 'raise ValueError("a bug")')
    assert script.wait(60) == 1
    assert 'ValueError: a bug' in (tmp_path / 'log').read_text()


def test_a_script_is_stopped_by_the_signal_to_its_group(tmp_path: Path) -> None:
    script = start(tmp_path, 'import time; time.sleep(60)')
    with pytest.raises(subprocess.TimeoutExpired):
        script.wait(1)
    assert script.poll() is None
    os.killpg(script.pid, signal.SIGTERM)
    assert script.wait(60) == -signal.SIGTERM
