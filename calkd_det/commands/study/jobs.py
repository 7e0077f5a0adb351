"""What is done for one run: its commands, and the row that they leave."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mmdet
from mmdet.evaluation import CocoMetric
from mmdet.registry import MODELS
from mmengine.config import Config

from calkd_det.commands.engine import Command, Job, JobFailed
from calkd_det.commands.study.design import FITTED
from calkd_det.commands.study.rows import Row, append_row
from calkd_det.commands.study.runs import Run, student_config, teacher_config
from calkd_det.commands.study.state import (
    TRAINED,
    calibration_file,
    checkpoint_of,
    given_checkpoint,
    is_trained,
    rows_of,
)
from calkd_det.errors import ConfigError, TeacherError
from calkd_det.evaluation import UnroundedCocoMetric
from calkd_det.hooks.run_fingerprint import FINGERPRINT_FILE
from calkd_det.measurement.held_out import annotation_file, sha256_of
from calkd_det.measurement.json_file import read_json, write_json
from calkd_det.stack import installed_versions

CONFIG = 'config.py'
MEASURED = 'measured.json'
LOG = 'run.log'
LOCK = 'lock'
LOCK_SECONDS = 10
CALIBRATION = ('nll', 'ece', 'ece_over', 'ece_under', 'ace')
MEASURE = ('-m', 'calkd_det.measurement.teacher_calibration')
CALIBRATE = ('-m', 'calkd_cli', 'calibrate')
MEASURE_STUDENT = ('-m', 'calkd_det.measurement.student_classifier')
MMDET_TOOLS = Path(mmdet.__file__).parent / '.mim' / 'tools'

# A command that has ended well sends the seconds it took.
Timed = Generator[Command, None, float]


def job_of(run: Run, device: str, finish: Callable[[Run, Row], None]) -> Job:
    """Return the job of a run.

    Args:
        run: The run.
        device: Name of the device, for the row.
        finish: Called with the row, once that is on disk.
    """
    needs = () if run.teacher is None else (run.teacher.hash,)
    return Job(run.hash, run.title, needs, functools.partial(_work, run, device, finish))


def delete_weights(run: Run) -> None:
    """Delete the weights of a student that has its row, unless its study keeps them."""
    if run.kind == 'student' and not run.study.keep_weights:
        for path in run.folder.glob('*.pth'):
            path.unlink()


def _work(run: Run, device: str, finish: Callable[[Run, Row], None]) -> Iterator[Command]:
    with _locked(run) as lock:
        row = rows_of([run]).get(run.hash)
        if run.kind == 'teacher':
            if row is None or checkpoint_of(run) is None:
                row = yield from _do_teacher(run, device, lock, row)
            if run.is_fitted and calibration_file(run) is None:
                yield from _fit_calibrators(run, lock)
        elif row is None:
            row = yield from _do_student(run, device, lock)
        finish(run, row)


def _do_teacher(
    run: Run, device: str, lock: int, known: Row | None
) -> Generator[Command, None, Row]:
    if not is_trained(run):
        given = None if run.detector.checkpoint is None else given_checkpoint(run)
        cfg = teacher_config(run.study, run.detector)
        seconds = yield from _train(run, cfg, lock, given)
        content = {'hash': run.hash, 'seconds': seconds, 'metrics': _metrics(run)}
        write_json(run.folder / TRAINED, content)
    words = [*_on_held_out_images(run, MEASURE), '--out', str(run.folder / MEASURED)]
    seconds = yield from _timed(run, words, lock)
    trained, measured = read_json(run.folder / TRAINED), read_json(run.folder / MEASURED)
    checkpoint = Path(checkpoint_of(run))
    row = {
        **_row(run, device, trained['seconds'] + seconds, trained['metrics']),
        'calibration': measured,
        'checkpoint_sha256': sha256_of(checkpoint) if checkpoint.is_file() else None,
    }
    append_row(run.study.results, row)
    same = known is None or _same_figures(known['metrics'], row['metrics'])
    if known and not (same and known['calibration'] == measured):
        raise TeacherError(
            f'was trained again, as its weights were gone, and came out otherwise than its row in '
            f"'{run.study.results}' says (another machine or version?): remove that row and those "
            'of its students'
        )
    return row


def _fit_calibrators(run: Run, lock: int) -> Timed:
    """Write a teacher's calibration file."""
    words = [*_on_held_out_images(run, CALIBRATE), '--workers', '0', '--out', str(run.calibration)]
    return _timed(run, words, lock)


def _on_held_out_images(run: Run, module: Sequence[str]) -> list[str]:
    """Return the words of a command on a trained teacher and the held-out images."""
    limit = run.study.measured_images
    return [
        *(sys.executable, *module, str(run.folder / CONFIG), checkpoint_of(run)),
        *('--ann', str(run.study.data.held_out_ann)),
        *('--images', str(run.study.data.held_out_images)),
        *([] if limit is None else ['--max-images', str(limit)]),
    ]


def _do_student(run: Run, device: str, lock: int) -> Generator[Command, None, Row]:
    cfg, of_teacher = _student(run)
    seconds = yield from _train(run, cfg, lock)
    metrics, classifier = _metrics(run), {}
    if run.study.measure_students:
        words = [
            *(sys.executable, *MEASURE_STUDENT, str(run.folder / CONFIG), checkpoint_of(run)),
            *('--out', str(run.folder / MEASURED)),
        ]
        seconds += yield from _timed(run, words, lock)
        classifier = {'classifier': read_json(run.folder / MEASURED)}
    row = {**_row(run, device, seconds, metrics), **of_teacher, **classifier}
    append_row(run.study.results, row)
    delete_weights(run)
    return row


def _student(run: Run) -> tuple[Config, Row]:
    """Return a student's config, and what its row keeps of the teacher."""
    if run.teacher is None:
        return student_config(run.study, run.cell, run.seed), {}
    row, checkpoint = rows_of([run.teacher]).get(run.teacher.hash), checkpoint_of(run.teacher)
    if row is None or checkpoint is None:
        raise TeacherError(f'needs its teacher: run {run.teacher.id} ({run.teacher.name}) first')
    calibration = calibration_file(run.teacher) if run.cell.reads_calibration else None
    if run.cell.reads_calibration and calibration is None:
        raise TeacherError(
            f'needs the fitted calibrators of its teacher: run {run.teacher.id} '
            f'({run.teacher.name}) first'
        )
    held_out = row['calibration']['held_out']
    temperature = run.cell.temperature
    temperature = held_out['temperature'] if temperature == FITTED else temperature
    cfg = student_config(
        run.study,
        run.cell,
        run.seed,
        teacher=str(run.teacher.folder / CONFIG),
        checkpoint=checkpoint,
        temperature=temperature,
        calibration=None if calibration is None else str(calibration),
    )
    at_one = held_out['at']['1']
    of_teacher = {
        'name': run.teacher.name,
        'hash': run.teacher.hash,
        'mAP': row['metrics']['mAP'],
        'T': temperature,
        'fitted_T': held_out['temperature'],
        'roi_accuracy': at_one['mean_accuracy'],
        **{name: at_one[name] for name in CALIBRATION},
    }
    if calibration is not None:
        of_teacher['calibrator'] = _fitted_parameters(cfg.model.teacher.calibrator, calibration)
    return cfg, {'teacher': of_teacher}


def _fitted_parameters(config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Return what a calibrator reads from a calibration file, numbers or lists by name.

    Raises:
        ConfigError: The file does not hold what the calibrator reads.
    """
    calibrator = MODELS.build(dict(config))
    calibrator.prepare()
    field = getattr(calibrator, 'file_field', getattr(calibrator, 'field', 'temperature'))
    values = read_json(file)[field]
    return values if isinstance(values, Mapping) else {field: values}


def _train(run: Run, cfg: Config, lock: int, given: str | None = None) -> Timed:
    """Train with mmdet's train.py, or test weights that are given with its test.py."""
    folder = run.folder
    if not run.study.resume:
        _empty(folder)
    # How figures are written decides nothing of the run, so it is no part of its hash.
    for key in ('val_evaluator', 'test_evaluator'):
        if cfg.get(key) is not None:
            cfg[key] = _unrounded(cfg[key])
    cfg.dump(folder / CONFIG)
    launch, launcher = [sys.executable], []
    if run.study.gpus_per_run > 1:
        processes = f'--nproc_per_node={run.study.gpus_per_run}'
        launch += ['-m', 'torch.distributed.run', '--standalone', processes]
        launcher = ['--launcher', 'pytorch']
    if given is None:
        resume = ['--resume'] if (folder / 'last_checkpoint').is_file() else []
        tool = [MMDET_TOOLS / 'train.py', folder / CONFIG, '--work-dir', folder, *resume]
    else:
        tool = [MMDET_TOOLS / 'test.py', folder / CONFIG, given, '--work-dir', folder]
    return _timed(run, [*launch, *map(str, tool), *launcher], lock)


def _timed(run: Run, words: list[str], lock: int) -> Timed:
    started = time.monotonic()
    yield Command(words, run.folder / LOG, (lock,))
    return time.monotonic() - started


def _row(run: Run, device: str, seconds: float, metrics: Mapping[str, float]) -> Row:
    return {
        'kind': run.kind,
        'hash': run.hash,
        'base_hash': run.base_hash,
        'study': run.study.name,
        'name': run.name,
        'seed': run.seed,
        'settings': run.settings,
        'metrics': dict(metrics),
        'fingerprint': read_json(run.folder / FINGERPRINT_FILE),
        'data': _data_digest(run),
        'seconds': round(seconds, 1),
        'device': device,
        'versions': installed_versions(),
    }


def _metrics(run: Run) -> dict[str, float]:
    """Return the figures of the last epoch, which mmdet's train.py evaluates when it ends.

    A teacher needs its mAP alone.

    Raises:
        JobFailed: The evaluators gave no such figure, or NaN.
    """
    tested = [path for path in run.folder.glob('*/*.json') if path.stem == path.parent.name]
    if tested:
        newest = max(tested, key=lambda path: path.name)
        found = [json.loads(newest.read_text('utf-8'))]
    else:
        logs = sorted(run.folder.glob('*/vis_data/scalars.json'))
        lines = [line for log in logs for line in log.read_text('utf-8').splitlines()]
        found = [entry for entry in map(json.loads, lines) if 'loss' not in entry]
    if not found:
        raise JobFailed(
            'was not evaluated: its config needs val_dataloader, val_evaluator and val_cfg'
        )
    wanted, given = run.study.metrics, found[-1]
    for name, key in wanted.items():
        if key not in given and (run.kind == 'student' or name == 'mAP'):
            figures = sorted(figure for figure in given if '/' in figure)
            raise JobFailed(
                f'study.metrics.{name}: its evaluators gave no {key!r}, but {", ".join(figures)}'
            )
        if math.isnan(given.get(key, 0.0)):
            raise JobFailed(
                f'study.metrics.{name}: {key!r} is NaN; has the detector learnt to find anything?'
            )
    return {name: given[key] for name, key in wanted.items() if key in given}


def _unrounded(evaluator: Any) -> Any:
    """Return an evaluator's config, or a list of them, with CocoMetric's figures in full."""
    if isinstance(evaluator, (list, tuple)):
        return [_unrounded(part) for part in evaluator]
    if evaluator.get('type') not in ('CocoMetric', 'mmdet.CocoMetric', CocoMetric):
        return evaluator
    return {**evaluator, 'type': UnroundedCocoMetric.__name__}


def _same_figures(known: Mapping[str, float], new: Mapping[str, float]) -> bool:
    """Return whether figures are the same; earlier rows were rounded to three digits."""
    return all(
        abs(value - new[name]) <= (5.001e-4 if value == round(value, 3) else 0)
        for name, value in known.items()
        if name in new
    )


def _data_digest(run: Run) -> str:
    """Return a hash of the annotations that a run was trained and judged by."""
    digest = hashlib.sha256()
    cfg = Config.fromfile(run.folder / CONFIG)
    for split in ('train', 'val'):
        with contextlib.suppress(ConfigError, OSError):
            digest.update(annotation_file(cfg, split)[0].read_bytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _locked(run: Run) -> Iterator[int]:
    """Take a run for this process; its subprocesses hold on to it, should this one die."""
    run.folder.mkdir(parents=True, exist_ok=True)
    with (run.folder / LOCK).open('a') as lock:
        wait_until = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > wait_until:
                    raise JobFailed(
                        f'{run.id} is being done by another process (it holds {run.folder / LOCK})'
                    ) from None
                time.sleep(0.2)
        yield lock.fileno()


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()
