"""Find what is done of a study's runs, and list them for the terminal or a cluster."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmengine.hub import get_config

from calkd_det.commands.study.rows import Row, read_rows, settings_key
from calkd_det.commands.study.runs import Run
from calkd_det.errors import ConfigError
from calkd_det.measurement.calibration_report import RESULT_FILE
from calkd_det.measurement.json_file import read_json

TRAINED = 'trained.json'
STATES = ('done', 'trained', 'to do')


def look(runs: Sequence[Run]) -> list[tuple[Run, str]]:
    """Find what is done. A teacher without its weights is not, while students still need it.

    Returns:
        Each run with its state: done, trained (a teacher that is not measured yet), or to do.

    Raises:
        ConfigError: A run has a row under another name, where the report would not find it.
    """
    rows = rows_of(runs)
    for run in runs:
        if run.hash in rows:
            _check_settings(run, rows[run.hash])
    missing = [run for run in runs if run.teacher and run.hash not in rows]
    needed = {run.teacher.hash for run in missing}
    read = {run.teacher.hash for run in missing if run.cell.reads_calibration}
    return [
        (run, _state(run, run.hash in rows, run.hash in needed, run.hash in read)) for run in runs
    ]


def rows_of(runs: Sequence[Run]) -> dict[str, Row]:
    """Return the rows of runs that have one, by hash."""
    wanted = {run.hash for run in runs}
    rows = [row for path in {run.study.results for run in runs} for row in read_rows(path)]
    return {row['hash']: row for row in rows if row['hash'] in wanted}


def find_run(runs: Iterable[Run], run_id: str) -> Run:
    """Return the run of an id.

    Raises:
        ConfigError: There is none.
    """
    for run in runs:
        if run_id in (run.id, run.hash):
            return run
    raise ConfigError(f'--run: the study has no run {run_id!r}; --dry-run lists their ids')


def is_trained(run: Run) -> bool:
    """Whether a run was trained by the config that it has now, and its weights are there."""
    trained = read_json(run.folder / TRAINED)
    return bool(trained and trained['hash'] == run.hash and checkpoint_of(run))


def checkpoint_of(run: Run) -> str | None:
    """Return the weights of a run: those that the study names, or those that it trained."""
    if run.kind == 'teacher' and run.detector.checkpoint is not None:
        return given_checkpoint(run)
    path = last_checkpoint(run.folder)
    return None if path is None else str(path)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint that mmengine's ``last_checkpoint`` names, if it is there."""
    try:
        # Only the name: mmengine writes an absolute path, and the folder may have moved.
        name = Path((folder / 'last_checkpoint').read_text('utf-8').strip()).name
    except OSError:
        return None
    return folder / name if name and (folder / name).is_file() else None


def given_checkpoint(run: Run) -> str:
    """Return the path or URL of weights that a teacher is not trained for.

    Raises:
        ConfigError: The model zoo has none for its config.
    """
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


def list_runs(runs: Sequence[Run]) -> str:
    """Return a table of all runs with their ids and what is done, for the terminal."""
    statuses = look(runs)
    lines = [
        f'{state:<8} {run.id:<21} {run.title}'
        + (f'  (needs {run.teacher.id})' if run.teacher else '')
        for run, state in statuses
    ]
    found = [state for _, state in statuses]
    total = ', '.join(f'{found.count(state)} {state}' for state in STATES)
    return '\n'.join([*lines, f'{len(runs)} runs: {total}'])


def list_commands(
    runs: Sequence[Run], configs: Sequence[str], cfg_options: Sequence[str] = ()
) -> str:
    """Return a command for each run that is not done, and Slurm arrays of the same."""
    missing = [run for run, state in look(runs) if state != 'done']
    if not missing:
        return '# nothing to do: every run has its row'
    words = ['calkd', 'study', *configs]
    if cfg_options:
        words += ['--cfg-options', *cfg_options]
    study = shlex.join(words)
    lines = [f'{study} --run {run.id}  # {run.title}' for run in missing]
    lines += ['', '# or all of them with Slurm']
    wait = ''
    for kind in ('teacher', 'student'):
        group = [run for run in missing if run.kind == kind]
        if group:
            ids = ' '.join(run.id for run in group)
            gpus = max(run.study.gpus_per_run for run in group)
            # POSIX: --wrap runs under sh.
            script = f'set -- {ids}; shift $((SLURM_ARRAY_TASK_ID - 1)); {study} --run $1'
            array = f'sbatch --parsable --array=1-{len(group)} --gpus={gpus}{wait}'
            lines.append(f'{kind}s=$({array} --wrap {shlex.quote(script)})')
            wait = f' --dependency=afterok:${kind}s'
    return '\n'.join(lines)


def calibration_file(teacher: Run) -> Path | None:
    """Return the file of a teacher's fitted calibrators, if it is there."""
    path = teacher.calibration / RESULT_FILE
    return path if path.is_file() else None


def _state(run: Run, has_row: bool, needed: bool, read: bool) -> str:
    gone = (needed and checkpoint_of(run) is None) or (read and calibration_file(run) is None)
    if has_row and not gone:
        return 'done'
    return 'trained' if run.kind == 'teacher' and is_trained(run) else 'to do'


def _check_settings(run: Run, row: Row) -> None:
    if settings_key(row['settings']) != settings_key(run.settings):
        raise ConfigError(
            f"'{run.study.results}' has the run {run.id} with settings {row['settings']}, the "
            f'study with {run.settings}: give teacher and student their old names in the study, '
            'or write the new ones into that row'
        )
