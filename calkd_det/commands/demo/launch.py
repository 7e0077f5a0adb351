"""Runs mmdet's tools as subprocesses, several at a time, and condenses their logs to progress."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from calkd_det.errors import CalKDError

TAIL_LINES = 30
POLL_SECONDS = 0.3
GRACE_SECONDS = 10
PR_SET_PDEATHSIG = 1

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
        begin: called right before the start, for the command line; None: nothing is left to do.
        end: called with the seconds it took, whether it ended well or not.
        succeed: called after that if it ended well; a ``CalKDError`` makes it a failure.
        inherited: called after ``begin``, for the open files that the subprocess keeps open.
        release: called last, however it ended.
    """

    name: str
    title: str
    needs: tuple[str, ...]
    log: Path
    begin: Callable[[], Sequence[str] | None]
    end: Callable[[float], None] = lambda seconds: None
    succeed: Callable[[float], None] = lambda seconds: None
    inherited: Callable[[], Sequence[int]] = tuple
    release: Callable[[], None] = lambda: None


def run_steps(
    steps: Sequence[Step],
    environment: Mapping[str, str],
    jobs: int,
    *,
    slots: Sequence[Mapping[str, str]] = (),
    keep_going: bool = False,
    verbose: bool = True,
) -> None:
    """Runs all steps, up to ``jobs`` at a time, and prints their progress.

    Args:
        steps: In the order that they are started in, as far as their needs allow.
        environment: Variables to set for them.
        jobs: How many run at the same time.
        slots: Further variables for each place that a step can run in, such as a GPU's number;
            none, or ``jobs`` of them.
        keep_going: Run all that does not need a failed step, and raise when nothing is left.
        verbose: Print command lines, progress and ends; else failures alone.

    Raises:
        StepFailed: One ended with an error; the others were stopped, unless ``keep_going``.
    """
    waiting = list(steps)
    running: list[_Job] = []
    failures: list[str] = []
    free = [{**environment, **slot} for slot in slots] or [dict(environment)] * jobs
    number = {step.name: f'{index}/{len(steps)}' for index, step in enumerate(steps, 1)}

    def fail(step: Step, error: CalKDError) -> None:
        if not keep_going:
            raise error
        print(f'{step.title}: {error}', flush=True)
        failures.append(step.title)
        lost = {step.name}
        for other in list(waiting):
            if lost & set(other.needs):
                lost.add(other.name)
                waiting.remove(other)
                failures.append(f'{other.title} (not run)')

    try:
        while waiting or running:
            unfinished = {step.name for step in waiting} | {job.step.name for job in running}
            for step in [step for step in waiting if not unfinished & set(step.needs)]:
                if step not in waiting or not free:
                    continue
                waiting.remove(step)
                try:
                    command = step.begin()
                    if command is not None:
                        prefix = f'[{number[step.name]} {step.title}]'
                        running.append(_Job(step, prefix, command, free.pop(0), verbose))
                except CalKDError as error:
                    fail(step, error)
            time.sleep(POLL_SECONDS)
            for job in list(running):
                try:
                    if not job.has_ended():
                        continue
                except CalKDError as error:
                    running.remove(job)
                    free.append(job.environment)
                    fail(job.step, error)
                else:
                    running.remove(job)
                    free.append(job.environment)
    finally:
        # All at once, so that a second Ctrl-C, which ends the waiting, leaves none behind.
        for job in running:
            job.send(signal.SIGTERM)
        for job in running:
            job.wait()
    if failures:
        raise StepFailed(f'{len(failures)} failed: {"; ".join(failures)}.')


def run_until_stopped(run: Callable[[], None], goes_on: str) -> int:
    """Runs what starts subprocesses, and says how it ended.

    Args:
        run: May raise a ``CalKDError``, which is printed.
        goes_on: What the same command would do after it was stopped, a clause.

    Returns:
        The exit status: 0, 1 after an error, 130 after it was stopped.
    """
    # So that subprocesses are also ended by a plain kill and by a terminal that closes.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        run()
    except CalKDError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f'\nstopped; the same command goes on {goes_on}.', file=sys.stderr)
        return 130
    return 0


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

    def __init__(
        self,
        step: Step,
        prefix: str,
        command: Sequence[str],
        environment: dict[str, str],
        verbose: bool,
    ) -> None:
        self.step = step
        self.prefix = prefix
        self.environment = environment
        self.verbose = verbose
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
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
                pass_fds=tuple(step.inherited()),
                preexec_fn=_end_with_parent,
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
        try:
            if code != 0:
                lines = self.step.log.read_text('utf-8', errors='replace').splitlines()
                print('\n'.join(lines[-TAIL_LINES:]), flush=True)
                raise StepFailed(
                    f'{self.step.title} ended with exit status {code}; '
                    f'above are the last lines of {self.step.log}.'
                )
            self.step.succeed(seconds)
        finally:
            self.step.release()
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
            self.step.release()

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
        if self.verbose:
            print(f'{self.prefix} {text}', flush=True)


_LIBC = ctypes.CDLL(None) if sys.platform == 'linux' else None


def _end_with_parent() -> None:
    """Has the kernel end this process with its parent, which SIGKILL leaves no time to do so."""
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
