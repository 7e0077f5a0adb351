"""Trains and tests what is missing of a plan."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import mmcv
import mmdet
import mmengine
import torch
from mmcv.ops import get_compiling_cuda_version

from calkd_det.commands.demo.launch import Step, run_steps
from calkd_det.commands.demo.plan import (
    CALKD_AS_PLAIN,
    EVALUATIONS,
    TEACHER,
    TRAININGS,
    Evaluation,
    Plan,
    Training,
)
from calkd_det.commands.demo.records import (
    fingerprint,
    is_newer,
    is_tested,
    last_checkpoint,
    move_aside,
    read_record,
    write_record,
)

LOG = 'demo.log'
# More threads gain nothing with layers this small.
MAX_THREADS = 4


@dataclass(frozen=True)
class Machine:
    """What the subprocesses run on.

    Attributes:
        device: for the report.
        environment: variables to set for them.
        jobs: how many run at a time.
    """

    device: str
    environment: dict[str, str]
    jobs: int


def look_at_machine() -> Machine:
    """Chooses GPU or CPU, and how many of its cores each subprocess gets."""
    cores = _usable_cores()
    jobs = min(2, cores)
    threads = os.environ.get('OMP_NUM_THREADS', str(min(MAX_THREADS, max(1, cores // jobs))))
    environment = {'OMP_NUM_THREADS': threads}
    if torch.cuda.is_available():
        if get_compiling_cuda_version() != 'not available':
            return Machine(torch.cuda.get_device_name(), environment, jobs)
        print('There is a GPU, but mmcv was built without CUDA: everything runs on the CPU.')
    device = f'CPU ({platform.machine()}, {cores} cores)'
    return Machine(device, {**environment, 'CUDA_VISIBLE_DEVICES': ''}, jobs)


def run_demo(plan: Plan, machine: Machine) -> None:
    """Trains and tests all that the plan lacks; what is there already is left alone.

    Raises:
        StepFailed: A training or a test ended with an error.
    """
    steps = [*_training_steps(plan, machine), *_calibration_step(plan), *_test_steps(plan)]
    run_steps(steps, machine.environment, machine.jobs)


def _training_steps(plan: Plan, machine: Machine) -> Iterator[Step]:
    for training in TRAININGS:
        wanted = fingerprint(plan, training)
        folder = plan.folder(training)
        record = read_record(folder)
        if folder.exists() and (record is None or record.get('fingerprint') != wanted):
            why = 'was not trained by this demo' if record is None else 'had another config or data'
            print(f'{folder} {why}: it is moved to {move_aside(folder)}, and trained anew.')
            record = None
        if last_checkpoint(folder) == plan.checkpoint(training):
            print(f'{training.title}: already trained, {plan.checkpoint(training)}')
            continue
        record = record or {'fingerprint': wanted, 'attempts': []}
        needs = (TEACHER.name,) if training.distilled else ()
        yield _training_step(plan, machine, training, record, needs)


def _training_step(
    plan: Plan,
    machine: Machine,
    training: Training,
    record: dict[str, Any],
    needs: tuple[str, ...],
) -> Step:
    folder = plan.folder(training)
    attempt = {
        'command': '',
        'started': '',
        'seconds': 0.0,
        'seed': plan.seed,
        'epochs': plan.epochs,
        'device': machine.device,
        'versions': _versions(),
    }

    def begin() -> Sequence[str]:
        checkpoint = last_checkpoint(folder)
        if checkpoint is None:
            record['attempts'].clear()
        else:
            print(f'{training.title}: goes on from {checkpoint}')
        command = plan.train_command(training, resume_from=checkpoint)
        attempt['command'] = shlex.join(command)
        attempt['started'] = datetime.now().isoformat(timespec='seconds')
        record['attempts'].append(attempt)
        write_record(folder, record)
        return command

    def end(seconds: float) -> None:
        attempt['seconds'] = round(seconds, 1)
        write_record(folder, record)

    return Step(training.name, f'train {training.title}', needs, folder / LOG, begin, end)


def _calibration_step(plan: Plan) -> Iterator[Step]:
    if is_newer(plan.calibration, plan.checkpoint(TEACHER)):
        print(f'calibration of the teacher: already there, {plan.calibration}')
        return
    yield Step(
        name='calibrate',
        title='calibrate teacher',
        needs=(TEACHER.name,),
        log=plan.calibration_dir / LOG,
        begin=plan.calibrate_command,
    )


def _test_steps(plan: Plan) -> Iterator[Step]:
    for evaluation in (*EVALUATIONS, CALKD_AS_PLAIN):
        if plan.checkpoint(evaluation.training).is_file() and is_tested(plan, evaluation):
            print(f'{evaluation.title}: already tested, {plan.test_folder(evaluation)}')
            continue
        yield _test_step(plan, evaluation)


def _test_step(plan: Plan, evaluation: Evaluation) -> Step:
    return Step(
        name=f'test {evaluation.name}',
        title=f'test {evaluation.title}',
        needs=(evaluation.training.name,),
        log=plan.test_folder(evaluation) / LOG,
        begin=lambda: plan.test_command(evaluation),
    )


def _usable_cores() -> int:
    if hasattr(os, 'sched_getaffinity'):  # fewer than there are, in a container
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _versions() -> str:
    modules = {'torch': torch, 'mmdet': mmdet, 'mmcv': mmcv, 'mmengine': mmengine}
    return ', '.join(f'{name} {module.__version__}' for name, module in modules.items())
