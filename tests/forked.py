"""Jobs that are forked from a process which has imported torch and mmdet, as they take seconds."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from helpers import process_context


class ForkedScript:
    """What ``engine`` needs of a ``subprocess.Popen`` of a Python script or module.

    The script runs as ``__main__`` in a process and a session of its own.
    """

    def __init__(
        self, words: Sequence[str], *, stdout: IO, env: Mapping[str, str], **_: Any
    ) -> None:
        python, *words = words
        assert python == sys.executable
        self._process = process_context().Process(
            target=_run, args=(words, dict(env), Path.cwd(), stdout.name)
        )
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired('a forked script', timeout)
        return self.returncode


def _run(words: list[str], env: dict[str, str], folder: Path, log: str) -> None:
    os.setsid()
    os.chdir(folder)
    with open(log, 'ab', buffering=0) as output:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(output.fileno(), stream.fileno())
    os.environ.clear()
    os.environ.update(env)
    if words[0] == '-m':
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name='__main__', alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name='__main__')
