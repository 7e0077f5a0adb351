"""Do what is missing of studies: data, teachers, their calibration, students."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from calkd_det.commands.engine import JobFailed, JobRunner
from calkd_det.commands.machine import Machine, look_at_machine
from calkd_det.commands.study.design import Study
from calkd_det.commands.study.jobs import LOCK, MMDET_TOOLS, delete_weights, job_of
from calkd_det.commands.study.rows import Row
from calkd_det.commands.study.runs import Run, expand
from calkd_det.commands.study.state import find_run, look
from calkd_det.config import config_path
from calkd_det.datasets.mini import write_mini_dataset
from calkd_det.errors import ConfigError

PREPARE_LOG = 'prepare.log'


def run_studies(studies: Sequence[Study], jobs: int | None) -> None:
    """Do all runs of studies that are not done.

    Args:
        studies: The studies.
        jobs: Number of runs at the same time; None for one a GPU, or one a core.

    Raises:
        ConfigError: A config is wrong, the data are not there, or there are too few GPUs.
        JobFailed: Runs failed; all others that do not need them were done.
    """
    counts = {study.gpus_per_run for study in studies}
    if len(counts) > 1:
        raise ConfigError('the studies differ in study.gpus_per_run: run them one after another')
    machine = look_at_machine(jobs, counts.pop())
    runs = expand(studies)
    prepare(studies, machine.slots[0])
    run_all(runs, machine)


def run_one(studies: Sequence[Study], run_id: str, jobs: int | None) -> None:
    """Do one run by its id; see :func:`run_studies`."""
    runs = expand(studies)
    run = find_run(runs, run_id)
    machine = look_at_machine(jobs or 1, run.study.gpus_per_run)
    prepare([run.study], machine.slots[0])
    run_all(runs, machine, only=run)


def run_all(runs: Sequence[Run], machine: Machine, only: Run | None = None) -> None:
    """Do all runs that are not done, several at a time.

    Args:
        runs: The runs. What students still need of a teacher depends on all of them.
        machine: Where they run.
        only: The one to do, or None for all.

    Raises:
        JobFailed: Runs failed; all others that do not need them were done.
    """
    statuses = [(run, state) for run, state in look(runs) if only in (None, run)]
    for run, state in statuses:
        if state == 'done':
            delete_weights(run)
    missing = [run for run, state in statuses if state != 'done']
    if not missing:
        tqdm.write('nothing to do: every run has its row')
        return
    total, places = len(statuses), len(machine.slots)
    done = total - len(missing)
    tqdm.write(f'{done} of {total} runs are done; {len(missing)} to do, {places} at a time')
    # disable=None: no bar where the output is no terminal.
    with tqdm(total=total, initial=done, unit='run', disable=None) as bar:

        def finish(run: Run, row: Row) -> None:
            nonlocal done
            done += 1
            bar.update()
            seconds, value = row['seconds'], 100 * row['metrics']['mAP']
            tqdm.write(f'[{done}/{total}] {run.title}: mAP {value:.1f} in {seconds:.0f} s')

        jobs = [job_of(run, machine.device, finish) for run in missing]
        JobRunner(jobs, machine.slots, bar.set_postfix_str).run()


def prepare(studies: Sequence[Study], environment: Mapping[str, str]) -> None:
    """Make data and run preparations, where their files are not there yet.

    Args:
        studies: The studies.
        environment: Variables to set for the commands.

    Raises:
        ConfigError: The data cannot be made, or are not there.
        JobFailed: A command ended with an error, or did not create its file.
    """
    folder = studies[0].work_dir
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open('a') as lock:
        # The tasks of a cluster start together: one makes the data, the others wait.
        fcntl.flock(lock, fcntl.LOCK_EX)
        for mini in _distinct(study.data.mini for study in studies):
            if mini is not None:
                dataset = write_mini_dataset(**mini, progress=sys.stdout.isatty())
                tqdm.write(f'{dataset.root}: {"made" if dataset.created else "already there"}')
        for step in _distinct(step for study in studies for step in study.prepare):
            if not step.creates.exists():
                tqdm.write(f'making {step.creates}')
                _run_preparation(step.command, step.creates, folder / PREPARE_LOG, environment)
    for study in studies:
        if not study.data.held_out_ann.is_file():
            raise ConfigError(
                f"study.data: there is no annotation file '{study.data.held_out_ann}' of held-out "
                'images'
            )


def _run_preparation(
    words: Sequence[str], creates: Path, log: Path, environment: Mapping[str, str]
) -> None:
    own_tools = Path(config_path('_base_/mini.py')).parents[2] / 'tools'
    places = {'python': sys.executable, 'mmdet_tools': MMDET_TOOLS, 'tools': own_tools}
    # The log is not beside what is created: a tool may want that folder empty.
    with log.open('a') as output:
        code = subprocess.run(
            [word.format(**places) for word in words],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        ).returncode
    if code or not creates.exists():
        missing = '' if creates.exists() else f' and without {creates}'
        raise JobFailed(
            f'study.prepare: the command ended with exit status {code}{missing}; see {log}.'
        )


def _distinct(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found
