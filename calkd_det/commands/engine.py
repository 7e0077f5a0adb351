"""Run jobs made of subprocesses: several at a time, each after those that it needs."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

from tqdm import tqdm

from calkd_det.errors import CalKDError

TAIL_LINES = 30
POLL_SECONDS = 0.3
GRACE_SECONDS = 10
PR_SET_PDEATHSIG = 1
TRAIN_LINE = re.compile(
    r'Epoch\(train\)\s+\[(?P<epoch>\d+)\]\[\s*(?P<done>\d+)/(?P<of>\d+)\].*?'
    r'\beta: (?P<eta>.+?)  .*?(?<!\S)loss: (?P<loss>\S+)'
)


class JobFailed(CalKDError, RuntimeError):
    """A subprocess ended with an error, or without what it should have made."""


@dataclass(frozen=True)
class Command:
    """A subprocess.

    Attributes:
        words: Its command line.
        log: File that the whole output is appended to.
        keeps_open: Numbers of open files that it inherits, such as that of a lock.
    """

    words: Sequence[str]
    log: Path
    keeps_open: tuple[int, ...] = ()


@dataclass(frozen=True)
class Job:
    """Subprocesses that run one after another, and what happens between them.

    Attributes:
        name: What ``needs`` of others refer to.
        title: What the progress calls it.
        needs: Names of jobs that must have ended well; a name of no job counts as ended.
        work: Makes an iterator of its commands. What the iterator does after a command is done
            when that has ended well; a ``CalKDError`` of it fails the job. It is closed however
            the job ends.
    """

    name: str
    title: str
    needs: tuple[str, ...]
    work: Callable[[], Iterator[Command]]


class JobRunner:
    """Runs jobs in places that each take one at a time.

    Args:
        jobs: In the order that they are started in, as far as their needs allow.
        slots: Environment variables of each place, such as a GPU's number.
        show_progress: Called now and then with a line on what is running.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        slots: Sequence[Mapping[str, str]],
        show_progress: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.jobs = {job.name: job for job in jobs}
        self.free = list(slots)
        self.show_progress = show_progress
        self.order = TopologicalSorter(
            {job.name: [name for name in job.needs if name in self.jobs] for job in jobs}
        )
        self.running: list[_Running] = []
        self.left = list(self.jobs)  # neither ended well nor failed
        self.failed: list[str] = []

    def run(self) -> None:
        """Run all jobs; one that fails stops those alone that need it.

        Raises:
            JobFailed: Jobs failed; all others that do not need them were done.
        """
        self.order.prepare()
        ready: list[str] = []
        numbers = {name: number for number, name in enumerate(self.jobs)}
        try:
            while True:
                ready = sorted([*ready, *self.order.get_ready()], key=numbers.__getitem__)
                if not ready and not self.running:
                    break
                while ready and self.free:
                    self._start(self.jobs[ready.pop(0)])
                if self.running:
                    time.sleep(POLL_SECONDS)
                    self._look()
        finally:
            self._stop()
        if self.failed:
            lost = [f'{self.jobs[name].title} (not run)' for name in self.left]
            titles = [*self.failed, *lost]
            raise JobFailed(f'{len(titles)} failed: {"; ".join(titles)}.')

    def _start(self, job: Job) -> None:
        running = _Running(job, self.free.pop(0))
        self.running.append(running)
        self._advance(running)

    def _look(self) -> None:
        for running in list(self.running):
            if running.process.poll() is not None:
                self._advance(running)
        self.show_progress('; '.join(filter(None, (job.progress() for job in self.running))))

    def _advance(self, running: _Running) -> None:
        try:
            if running.start_next():
                return
        except CalKDError as error:
            tqdm.write(f'{running.job.title}: {error}')
            self.failed.append(running.job.title)
        else:
            self.order.done(running.job.name)
        running.commands.close()
        self.running.remove(running)
        self.left.remove(running.job.name)
        self.free.append(running.slot)

    def _stop(self) -> None:
        # All at once, so that a second Ctrl-C, which ends the waiting, leaves none behind.
        for running in self.running:
            running.signal(signal.SIGTERM)
        for running in self.running:
            running.wait()


class _Running:
    """A job in its place."""

    def __init__(self, job: Job, slot: Mapping[str, str]) -> None:
        self.job = job
        self.slot = slot
        self.commands = job.work()
        self.command: Command | None = None
        self.process: subprocess.Popen | None = None

    def start_next(self) -> bool:
        """Start the next subprocess; False if there is none.

        Raises:
            JobFailed: The last one ended with an error.
        """
        if self.process is not None and self.process.returncode:
            lines = self.command.log.read_text('utf-8', errors='replace').splitlines()
            tqdm.write('\n'.join(lines[-TAIL_LINES:]))
            raise JobFailed(
                f'ended with exit status {self.process.returncode}; above are the last lines of '
                f'{self.command.log}.'
            )
        self.command = next(self.commands, None)
        if self.command is None:
            return False
        self.command.log.parent.mkdir(parents=True, exist_ok=True)
        with self.command.log.open('a', encoding='utf-8') as output:
            # A session of its own: Ctrl-C reaches this process alone, which then stops the
            # subprocess together with its data loaders.
            self.process = subprocess.Popen(
                list(self.command.words),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.slot},
                start_new_session=True,
                pass_fds=self.command.keeps_open,
                preexec_fn=_end_with_parent,
            )
        return True

    def progress(self) -> str:
        """Return what the log says of a training, or nothing."""
        with self.command.log.open('rb') as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            line = last_train_line(file.read().decode('utf-8', errors='replace'))
        return line and f'{self.job.title}: {line}'

    def signal(self, number: signal.Signals) -> None:
        """Signal the subprocess and all that it started."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def wait(self) -> None:
        """Wait for the subprocess to end, kill it when that takes long."""
        try:
            if self.process is not None:
                self.process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
        self.commands.close()


def last_train_line(log: str) -> str:
    """Condense the last line on a training step in mmengine's log; empty if there is none."""
    matches = list(TRAIN_LINE.finditer(log))
    if not matches:
        return ''
    match = matches[-1]
    step = f'epoch {match["epoch"]}, iteration {match["done"]}/{match["of"]}'
    return f'{step}, loss {match["loss"]}, {match["eta"]} left'


_LIBC = ctypes.CDLL(None) if sys.platform == 'linux' else None


def _end_with_parent() -> None:
    """Have the kernel end this process with its parent, which SIGKILL leaves no time to do so."""
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
