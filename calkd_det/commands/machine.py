"""What the machine has for subprocesses: devices, and the environment of each of them."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import torch
from mmcv.ops import get_compiling_cuda_version

from calkd_det.errors import ConfigError


@dataclass(frozen=True)
class Machine:
    """Where subprocesses run.

    Attributes:
        device: Its name.
        slots: Environment variables of each place that a run can take.
    """

    device: str
    slots: tuple[dict[str, str], ...]


def look_at_machine(jobs: int | None, gpus_per_run: int = 1) -> Machine:
    """Divide the machine: a run on each GPU, or on each core with one thread.

    More jobs than GPUs share them in turn, as small detectors do not fill one.

    Args:
        jobs: Number of runs at the same time; None for one a GPU, or one a core.
        gpus_per_run: Number of GPUs that each run gets.

    Raises:
        ConfigError: ``jobs`` is below 1, or there are too few GPUs for one run or, where a run
            gets several, for all of them.
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
    if places < 1 or (gpus_per_run > 1 and (jobs or 1) > places):
        raise ConfigError(
            f'--jobs {jobs or 1} needs {(jobs or 1) * gpus_per_run} GPUs, but there are '
            f'{len(gpus)}: give fewer jobs, or change study.gpus_per_run'
        )
    # cuBLAS is deterministic only with a workspace of fixed size.
    threads['CUBLAS_WORKSPACE_CONFIG'] = ':4096:8'
    groups = [gpus[i * gpus_per_run : (i + 1) * gpus_per_run] for i in range(places)]
    groups = [groups[i % places] for i in range(jobs or places)]
    slots = tuple({**threads, 'CUDA_VISIBLE_DEVICES': ','.join(group)} for group in groups)
    return Machine(torch.cuda.get_device_name(), slots)
