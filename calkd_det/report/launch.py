"""Runs mmdet's tools as subprocesses, several at a time, and condenses their logs to progress."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from calkd_det.errors import CalKDError

TAIL_LINES = 30
POLL_SECONDS = 0.3
GRACE_SECONDS = 10

TRAIN_LINE = re.compile(
    r'Epoch\(train\)\s+\[(?P<epoch>\d+)\]\[\s*(?P<done>\d+)/(?P<of>\d+)\].*?'
    r'\beta: (?P<eta>.+?)  .*?(?<!\S)loss: (?P<loss>\S+)'
)
RESULT_LINE = re.compile(r'Epoch\((?:val|test)\).*coco/bbox_mAP: (?P<map>\S+)')


class StepFailed(CalKDError, RuntimeError):
    """A subprocess ended with an error."""


@dataclass(frozen=True)
class Step:
    """A subprocess to run, after those that it needs.

    Attributes:
        name: what ``needs`` of others refer to.
        title: what the progress calls it.
        needs: names of steps that must have ended; names that are no step count as ended.
        log: file that the whole output is appended to.
        begin: called right before the start, for the command line.
        end: called with the seconds it took, whether it ended well or not.
    """

    name: str
    title: str
    needs: tuple[str, ...]
    log: Path
    begin: Callable[[], Sequence[str]]
    end: Callable[[float], None] = lambda seconds: None


def run_steps(steps: Sequence[Step], environment: Mapping[str, str], jobs: int) -> None:
    """Runs all steps, up to ``jobs`` at a time, and prints their progress.

    Args:
        steps: In the order that they are started in, as far as their needs allow.
        environment: Variables to set for them.
        jobs: How many run at the same time.

    Raises:
        StepFailed: One ended with an error; the others were stopped.
    """
    waiting, running = list(steps), []
    number = {step.name: f'{index}/{len(steps)}' for index, step in enumerate(steps, 1)}
    try:
        while waiting or running:
            unfinished = {step.name for step in waiting} | {job.step.name for job in running}
            for step in [step for step in waiting if not unfinished & set(step.needs)]:
                if len(running) < jobs:
                    waiting.remove(step)
                    running.append(_Job(step, number[step.name], environment))
            time.sleep(POLL_SECONDS)
            running = [job for job in running if not job.has_ended()]
    finally:
        # All at once, so that a second Ctrl-C, which ends the waiting, leaves none behind.
        for job in running:
            job.send(signal.SIGTERM)
        for job in running:
            job.wait()


def condense(line: str) -> str | None:
    """Returns what a line of mmengine's log says of the progress, or None."""
    if match := TRAIN_LINE.search(line):
        step = f'epoch {match["epoch"]:>2}  iteration {match["done"]:>3}/{match["of"]}'
        return f'{step}  loss {match["loss"]}  eta {match["eta"]}'
    if match := RESULT_LINE.search(line):
        return f'mAP {match["map"]}'
    return None


class _Job:
    """A step's subprocess."""

    def __init__(self, step: Step, number: str, environment: Mapping[str, str]) -> None:
        self.step = step
        self.prefix = f'[{number} {step.title}]'
        command = list(step.begin())
        words = shlex.join([f'{name}={value}' for name, value in environment.items()])
        self._say(f'{words} {shlex.join(command)}')
        step.log.parent.mkdir(parents=True, exist_ok=True)
        self.started = time.monotonic()
        self.partial = ''
        with step.log.open('a', encoding='utf-8') as output:
            self.reader = step.log.open(encoding='utf-8', errors='replace')
            self.reader.seek(0, os.SEEK_END)
            # A session of its own: Ctrl-C reaches this process alone, which then stops the
            # subprocess together with its data loaders.
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )

    def has_ended(self) -> bool:
        """Prints what is new. Whether the subprocess ended well.

        Raises:
            StepFailed: It ended with an error.
        """
        code = self.process.poll()
        self._print_progress()
        if code is None:
            return False
        seconds = self._close()
        if code != 0:
            lines = self.step.log.read_text('utf-8', errors='replace').splitlines()
            print('\n'.join(lines[-TAIL_LINES:]), flush=True)
            raise StepFailed(
                f'{self.step.title} ended with exit status {code}; '
                f'above are the last lines of {self.step.log}.'
            )
        self._say(f'done in {seconds / 60:.1f} min')
        return True

    def send(self, number: signal.Signals) -> None:
        """Signals the subprocess and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def wait(self) -> None:
        """Waits for the subprocess to end, not for ever."""
        try:
            self.process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
        if not self.reader.closed:
            self._close()

    def _close(self) -> float:
        self.reader.close()
        seconds = time.monotonic() - self.started
        self.step.end(seconds)
        return seconds

    def _print_progress(self) -> None:
        for line in self._new_lines():
            if news := condense(line):
                self._say(news)

    def _new_lines(self) -> Iterable[str]:
        *lines, self.partial = (self.partial + self.reader.read()).split('\n')
        return lines

    def _say(self, text: str) -> None:
        print(f'{self.prefix} {text}', flush=True)
