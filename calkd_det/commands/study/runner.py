"""Does what is missing of a study: data, teachers, their calibration, students."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mmcv
import mmdet
import mmengine
import torch
from mmcv.ops import get_compiling_cuda_version
from mmengine.config import Config
from mmengine.hub import get_config

import calkd_det
from calkd_det.commands.demo.launch import Step, StepFailed, run_steps
from calkd_det.commands.demo.plan import shorten
from calkd_det.commands.demo.runs import newest_metrics
from calkd_det.commands.study import fingerprint
from calkd_det.commands.study.rows import (
    Row,
    append_row,
    read_json,
    read_rows,
    settings_key,
    write_json,
)
from calkd_det.commands.study.runs import Run, annotation_file, student_config, teacher_config
from calkd_det.commands.study.settings import FITTED, Study
from calkd_det.config import config_path
from calkd_det.datasets.mini import write_mini_dataset
from calkd_det.errors import ConfigError, TeacherError
from calkd_det.measurement.held_out import sha256_of

CONFIG = 'config.py'
TRAINED = 'trained.json'
MEASURED = 'measured.json'
LOG = 'run.log'
PREPARE_LOG = 'prepare.log'
LOCK = 'lock'
LOCK_SECONDS = 10
METRICS = {'mAP': 'coco/bbox_mAP', 'AP50': 'coco/bbox_mAP_50', 'AP75': 'coco/bbox_mAP_75'}
_NOTHING: dict[str, str] = {}
MEASURE = ('-m', 'calkd_det.commands.study.measure_teacher')
MMDET_TOOLS = Path(mmdet.__file__).parent / '.mim' / 'tools'


def say_now(text: str) -> None:
    """Prints a line at once, into a file too."""
    print(text, flush=True)


@dataclass(frozen=True)
class Machine:
    """Where subprocesses run.

    Attributes:
        device: for the rows.
        slots: variables of each place that a run can take.
    """

    device: str
    slots: tuple[dict[str, str], ...]


def look_at_machine(jobs: int | None, gpus_per_run: int = 1) -> Machine:
    """Divides the machine: one run on each GPU, or one thread a run on the CPU.

    Args:
        jobs: How many runs at the same time; None: one a GPU, or one a core.
        gpus_per_run: GPUs that each run gets.

    Raises:
        ConfigError: ``jobs`` is below 1, or there are too few GPUs for them.
    """
    if jobs is not None and jobs < 1:
        raise ConfigError(f'--jobs must be at least 1, not {jobs}.')
    threads = {'OMP_NUM_THREADS': os.environ.get('OMP_NUM_THREADS', '1')}
    if not torch.cuda.is_available() or get_compiling_cuda_version() == 'not available':
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
        device = f'CPU ({platform.machine()}), {threads["OMP_NUM_THREADS"]} threads a run'
        return Machine(device, ({**threads, 'CUDA_VISIBLE_DEVICES': ''},) * (jobs or cores or 1))
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    gpus = visible.split(',') if visible else [str(i) for i in range(torch.cuda.device_count())]
    places = len(gpus) // gpus_per_run
    if (jobs or 1) > places:
        raise ConfigError(
            f'--jobs {jobs or 1} needs {(jobs or 1) * gpus_per_run} GPUs, but there are '
            f'{len(gpus)}: give fewer jobs, or change study.gpus_per_run'
        )
    # cuBLAS is deterministic only with a workspace of fixed size.
    threads['CUBLAS_WORKSPACE_CONFIG'] = ':4096:8'
    groups = [gpus[i * gpus_per_run : (i + 1) * gpus_per_run] for i in range(jobs or places)]
    slots = tuple({**threads, 'CUDA_VISIBLE_DEVICES': ','.join(group)} for group in groups)
    return Machine(torch.cuda.get_device_name(), slots)


@dataclass(frozen=True)
class Status:
    """What the files say of a run: done, trained (a teacher not yet measured), or to do."""

    run: Run
    state: str


def look(runs: Iterable[Run]) -> list[Status]:
    """Finds what is done; a teacher whose weights students still need is not done without them.

    Raises:
        ConfigError: A run has a row under another name, where the report would not find it.
    """
    runs = list(runs)
    finished = _finished(runs)
    for run in runs:
        if run.hash in finished:
            _check_settings(run, finished[run.hash])
    needed = {
        run.teacher.hash for run in runs if run.teacher is not None and run.hash not in finished
    }
    found = []
    for run in runs:
        done = run.hash in finished
        if done and run.hash in needed:
            done = _checkpoint(run) is not None
        trained = run.kind == 'teacher' and _is_trained(run)
        found.append(Status(run, 'done' if done else 'trained' if trained else 'to do'))
    return found


def prepare(
    studies: Sequence[Study], say: Any = say_now, environment: Mapping[str, str] = _NOTHING
) -> None:
    """Makes data and runs preparations, where their files are not there yet.

    Args:
        studies: Whose.
        say: Takes each line of the progress.
        environment: Variables to set for the commands.

    Raises:
        ConfigError: The data cannot be made, or are not there.
        StepFailed: A command ended with an error, or did not create its file.
    """
    folder = studies[0].work_dir
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open('a') as lock:
        # The tasks of a cluster start together: one makes the data, the others wait.
        fcntl.flock(lock, fcntl.LOCK_EX)
        _prepare(studies, folder / PREPARE_LOG, say, environment)


def _prepare(studies: Sequence[Study], log: Path, say: Any, environment: Mapping[str, str]) -> None:
    for mini in _distinct(study.data.mini for study in studies):
        if mini is not None:
            dataset = write_mini_dataset(**mini, progress=sys.stdout.isatty())
            say(f'{dataset.root}: {"made" if dataset.created else "already there"}')
    for step in _distinct(step for study in studies for step in study.prepare):
        if step.creates.exists():
            continue
        places = {'python': sys.executable, 'mmdet_tools': MMDET_TOOLS, 'tools': _own_tools()}
        command = [word.format(**places) for word in step.command]
        say(f'makes {step.creates}: {" ".join(command)}')
        # Not beside what is created: a tool may want that folder empty.
        with log.open('a') as output:
            done = subprocess.run(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
            )
            code = done.returncode
        if code or not step.creates.exists():
            raise StepFailed(
                f'study.prepare: the command ended with exit status {code}'
                f'{"" if step.creates.exists() else f" and without {step.creates}"}; see {log}.'
            )
    for study in studies:
        if not study.data.held_out_ann.is_file():
            raise ConfigError(
                f"study.data: there is no annotation file '{study.data.held_out_ann}' of held-out "
                'images'
            )


def run_all(runs: Sequence[Run], machine: Machine, say: Any = say_now) -> None:
    """Does all runs that are not done, several at a time.

    Raises:
        StepFailed: Runs failed; all others that do not need them were done.
    """
    statuses = look(runs)
    progress = _Progress(statuses, len(machine.slots), say)
    _clean_up(statuses)
    steps: list[Step] = []
    for status in statuses:
        if status.state != 'done':
            steps += _Job(status.run, machine.device, progress).steps(status.state == 'trained')
    if not steps:
        say('nothing to do: every run has its row')
        return
    say(progress.start())
    run_steps(steps, {}, len(machine.slots), slots=machine.slots, keep_going=True, verbose=False)


def find_run(runs: Sequence[Run], run_id: str) -> Run:
    """Returns the run of an id.

    Raises:
        ConfigError: There is none.
    """
    for run in runs:
        if run_id in (run.id, run.hash):
            return run
    raise ConfigError(f'--run: the study has no run {run_id!r}; --dry-run lists their ids')


@dataclass
class _Progress:
    """Counts what is done and says when all will be."""

    statuses: list[Status]
    jobs: int
    say: Any
    done: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.missing = [status.run for status in self.statuses if status.state != 'done']
        hashes = {status.run.hash for status in self.statuses}
        for path in {status.run.study.results for status in self.statuses}:
            for row in read_rows(path):
                if row['hash'] in hashes:
                    self.seconds.setdefault(row['kind'], []).append(row['seconds'])

    def start(self) -> str:
        total, missing = len(self.statuses), len(self.missing)
        return f'{total - missing} of {total} runs are done; {missing} to do, {self.jobs} at a time'

    def finish(self, run: Run, row: Row) -> None:
        self.done += 1
        self.missing = [other for other in self.missing if other.hash != run.hash]
        self.seconds.setdefault(run.kind, []).append(row['seconds'])
        done = len(self.statuses) - len(self.missing)
        self.say(
            f'[{done}/{len(self.statuses)}] {run.title}: mAP {100 * row["metrics"]["mAP"]:.1f} '
            f'in {row["seconds"]:.0f} s; {self.remaining()}',
        )

    def remaining(self) -> str:
        if not self.missing:
            return 'all done'
        left = f'{len(self.missing)} left'
        if any(run.kind not in self.seconds for run in self.missing):
            return left
        means = {kind: sum(values) / len(values) for kind, values in self.seconds.items()}
        total = sum(means[run.kind] for run in self.missing)
        return f'{left}, about {_duration(total / self.jobs)}'


class _Job:
    """The steps of one run, and what happens between them."""

    def __init__(self, run: Run, device: str, progress: _Progress) -> None:
        self.run = run
        self.device = device
        self.progress = progress
        self.lock: Any = None
        self.used_temperature: float | None = None

    def steps(self, trained: bool) -> list[Step]:
        """The subprocesses, each needing the one before it."""
        run = self.run
        if run.kind == 'student':
            needs = (f'{run.teacher.hash} measure',) if run.teacher else ()
            return [self._step('train', needs, self._begin_training, self._finish_student)]
        measure = f'{run.hash} train'
        steps = [self._step('measure', (measure,), self._begin_measuring, self._finish_teacher)]
        if not trained:
            steps.insert(0, self._step('train', (), self._begin_training, self._finish_training))
        return steps

    def _step(self, what: str, needs: tuple[str, ...], begin: Any, succeed: Any) -> Step:
        def locked() -> list[str] | None:
            self._acquire()
            command = None
            try:
                command = begin()
            finally:
                if command is None:
                    self.lock = self.lock.close()
            return command

        return Step(
            name=f'{self.run.hash} {what}',
            title=f'{self.run.title} ({what})',
            needs=needs,
            log=self.run.folder / LOG,
            begin=locked,
            succeed=succeed,
            inherited=lambda: [self.lock.fileno()],
            release=lambda: self.lock.close(),
        )

    def _begin_training(self) -> list[str] | None:
        run, folder = self.run, self.run.folder
        if run.hash in _finished([run]) and (run.kind == 'student' or _checkpoint(run)):
            return None
        cfg, checkpoint = self._config()
        if not run.study.resume:
            _empty(folder)
        cfg.dump(folder / CONFIG)
        if checkpoint is not None:
            tool, words = 'test.py', [str(folder / CONFIG), checkpoint]
        else:
            tool, words = 'train.py', [str(folder / CONFIG)]
        command = [shorten(sys.executable)]
        launcher: list[str] = []
        if run.study.gpus_per_run > 1:
            processes = f'--nproc_per_node={run.study.gpus_per_run}'
            command += ['-m', 'torch.distributed.run', '--standalone', processes]
            launcher = ['--launcher', 'pytorch']
        command += [shorten(MMDET_TOOLS / tool), *words, '--work-dir', str(folder), *launcher]
        if tool == 'train.py' and (folder / 'last_checkpoint').is_file():
            command.append('--resume')
        return command

    def _config(self) -> tuple[Config, str | None]:
        """The config to write, and the checkpoint of a teacher that is trained already."""
        run = self.run
        if run.kind == 'teacher':
            teacher = run.detector
            cfg = teacher_config(run.study, teacher)
            return cfg, None if teacher.checkpoint is None else _given_checkpoint(run)
        if run.teacher is None:
            return student_config(run.study, run.cell, run.seed), None
        row = _finished([run.teacher]).get(run.teacher.hash)
        checkpoint = _checkpoint(run.teacher)
        if row is None or checkpoint is None:
            raise TeacherError(
                f'{run.title} needs its teacher: run {run.teacher.id} ({run.teacher.name}) first'
            )
        temperature = run.cell.temperature
        if temperature == FITTED:
            temperature = row['calibration']['held_out']['temperature']
        self.used_temperature = temperature
        cfg = student_config(
            run.study,
            run.cell,
            run.seed,
            teacher=str(run.teacher.folder / CONFIG),
            checkpoint=checkpoint,
            temperature=temperature,
        )
        return cfg, None

    def _finish_training(self, seconds: float) -> None:
        content = {'hash': self.run.hash, 'seconds': seconds, 'metrics': self._metrics()}
        write_json(self.run.folder / TRAINED, content)

    def _begin_measuring(self) -> list[str] | None:
        run, folder = self.run, self.run.folder
        if run.hash in _finished([run]) and (folder / MEASURED).is_file():
            return None
        limit = run.study.measured_images
        return [
            *(shorten(sys.executable), *MEASURE),
            *(str(folder / CONFIG), _checkpoint(run)),
            *('--ann', str(run.study.data.held_out_ann)),
            *('--images', str(run.study.data.held_out_images)),
            *([] if limit is None else ['--max-images', str(limit)]),
            *('--out', str(folder / MEASURED)),
        ]

    def _finish_teacher(self, seconds: float) -> None:
        run = self.run
        trained = read_json(run.folder / TRAINED)
        calibration = read_json(run.folder / MEASURED)
        row = {
            **self._common(trained['seconds'] + seconds, trained['metrics']),
            'calibration': calibration,
            'checkpoint_sha256': _sha256(_checkpoint(run)),
        }
        if not append_row(run.study.results, row):
            known = _finished([run])[run.hash]
            if known['metrics'] != row['metrics'] or known['calibration'] != calibration:
                raise TeacherError(
                    f'{run.title} was trained again, as its weights were gone, and came out '
                    f"otherwise than its row in '{run.study.results}' says (another machine or "
                    'version?): remove that row and those of its students'
                )
        self.progress.finish(run, row)

    def _finish_student(self, seconds: float) -> None:
        run = self.run
        row = self._common(seconds, self._metrics())
        if run.teacher is not None:
            known = _finished([run.teacher])[run.teacher.hash]
            held_out = known['calibration']['held_out']
            row['teacher'] = {
                'name': run.teacher.name,
                'hash': run.teacher.hash,
                'mAP': known['metrics']['mAP'],
                'T': self.used_temperature,
                'fitted_T': held_out['temperature'],
                'roi_accuracy': held_out['at']['1']['mean_accuracy'],
                **{name: held_out['at']['1'][name] for name in _CALIBRATION},
            }
        append_row(run.study.results, row)
        _delete_checkpoints(run.folder)
        self.progress.finish(run, row)

    def _common(self, seconds: float, metrics: Mapping[str, float]) -> Row:
        run = self.run
        return {
            'kind': run.kind,
            'hash': run.hash,
            'base_hash': run.base_hash,
            'study': run.study.name,
            'name': run.name,
            'seed': run.seed,
            'settings': run.settings,
            'metrics': dict(metrics),
            'fingerprint': read_json(run.folder / fingerprint.FILE),
            'data': _data_digest(run),
            'seconds': round(seconds, 1),
            'device': self.device,
            'versions': _versions(),
        }

    def _metrics(self) -> dict[str, float]:
        """COCO's figures of the last epoch, which mmdet's train.py evaluates when it ends."""
        folder = self.run.folder
        tested = newest_metrics(folder)
        if tested is not None:
            found = [json.loads(tested.read_text('utf-8'))]
        else:
            logs = sorted(folder.glob('*/vis_data/scalars.json'))
            lines = [line for log in logs for line in log.read_text('utf-8').splitlines()]
            found = [entry for entry in map(json.loads, lines) if 'loss' not in entry]
        if not found:
            raise StepFailed(
                f'{self.run.title} was not evaluated: its config needs val_dataloader, '
                'val_evaluator and val_cfg'
            )
        # CocoMetric gives no figure at all where nothing was detected.
        return {name: found[-1].get(key, 0.0) for name, key in METRICS.items()}

    def _acquire(self) -> None:
        """Takes the run for this process; the subprocess holds on to it, should this one die."""
        folder = self.run.folder
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open('a')
        waited_until = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() > waited_until:
                    lock.close()
                    raise StepFailed(
                        f'{self.run.id} is being done by another process (it holds {folder / LOCK})'
                    ) from None
                time.sleep(0.2)
            else:
                self.lock = lock
                return


_CALIBRATION = ('nll', 'ece', 'ece_over', 'ece_under', 'ace')


def _finished(runs: Iterable[Run]) -> dict[str, Row]:
    """The rows of runs, by hash."""
    runs = list(runs)
    wanted = {run.hash for run in runs}
    paths = {run.study.results for run in runs}
    rows = [row for path in paths for row in read_rows(path)]
    return {row['hash']: row for row in rows if row['hash'] in wanted}


def _check_settings(run: Run, row: Row) -> None:
    if settings_key(row['settings']) != settings_key(run.settings):
        raise ConfigError(
            f"'{run.study.results}' has the run {run.id} with settings {row['settings']}, the "
            f'study with {run.settings}: give teacher and student their old names in the study, '
            'or write the new ones into that row'
        )


def _is_trained(run: Run) -> bool:
    trained = read_json(run.folder / TRAINED)
    return bool(trained and trained['hash'] == run.hash and _checkpoint(run))


def _checkpoint(run: Run) -> str | None:
    """The weights of a teacher that is trained."""
    if run.detector.checkpoint is not None:
        return _given_checkpoint(run)
    try:
        # Only the name: mmengine writes an absolute path, and the folder may have moved.
        name = Path((run.folder / 'last_checkpoint').read_text('utf-8').strip()).name
    except OSError:
        return None
    path = run.folder / name
    return str(path) if path.is_file() else None


def _given_checkpoint(run: Run) -> str:
    teacher = run.detector
    if teacher.checkpoint != 'zoo':
        return teacher.checkpoint
    try:
        return get_config(teacher.config, pretrained=True).model_path
    except Exception as error:
        raise ConfigError(
            f"study.teachers: '{teacher.name}' has checkpoint='zoo', but its config "
            f"'{teacher.config}' has none there ({type(error).__name__}: {error})"
        ) from error


def _clean_up(statuses: Iterable[Status]) -> None:
    """Deletes the weights of students whose end was interrupted after their row was written."""
    for status in statuses:
        if status.run.kind == 'student' and status.state == 'done':
            _delete_checkpoints(status.run.folder)


def _delete_checkpoints(folder: Path) -> None:
    for path in folder.glob('*.pth'):
        path.unlink()


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name == LOCK:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _data_digest(run: Run) -> str:
    """A hash of the annotations that a run was trained and judged by."""
    digest = hashlib.sha256()
    cfg = Config.fromfile(run.folder / CONFIG)
    for split in ('train', 'val'):
        with contextlib.suppress(ConfigError, OSError):
            digest.update(annotation_file(cfg, split)[0].read_bytes())
    return digest.hexdigest()[:16]


def _sha256(path: str) -> str | None:
    return sha256_of(Path(path)) if Path(path).is_file() else None


def _versions() -> dict[str, str]:
    modules = (calkd_det, torch, mmdet, mmengine, mmcv)
    return {
        **{module.__name__: module.__version__ for module in modules},
        'numpy': version('numpy'),
        'python': platform.python_version(),
    }


def _own_tools() -> Path:
    return Path(config_path('_base_/mini.py')).parents[2] / 'tools'


def _distinct(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f'{minutes // 60} h {minutes % 60:02d} min' if minutes >= 60 else f'{minutes} min'
