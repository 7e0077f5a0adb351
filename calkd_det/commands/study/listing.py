"""List the runs of a study, and the commands that do them one by one on a cluster."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from calkd_det.commands.study.runs import Run
from calkd_det.commands.study.state import look


def list_runs(runs: Sequence[Run]) -> str:
    """Return a table of all runs with their ids and what is done, for the terminal."""
    statuses = look(runs)
    lines = [
        f'{status.state:<8} {status.run.id:<21} {status.run.title}'
        + (f'  (needs {status.run.teacher.id})' if status.run.teacher else '')
        for status in statuses
    ]
    counts = [sum(status.state == state for status in statuses) for state in _STATES]
    total = ', '.join(f'{count} {state}' for count, state in zip(counts, _STATES))
    return '\n'.join([*lines, f'{len(runs)} runs: {total}'])


def list_commands(
    runs: Sequence[Run], configs: Sequence[str], cfg_options: Sequence[str] = ()
) -> str:
    """Return a command for each run that is not done, and Slurm arrays of the same."""
    missing = [status.run for status in look(runs) if status.state != 'done']
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


_STATES = ('done', 'trained', 'to do')
