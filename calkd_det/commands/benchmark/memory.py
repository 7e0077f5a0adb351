"""Peak memory of a step."""

from __future__ import annotations

import re
import resource
from pathlib import Path

import torch
from mmdet.utils import register_all_modules
from mmengine.logging import MMLogger

from calkd_det.commands.benchmark.subject import Subject
from calkd_det.commands.benchmark.ways import STEPS

REPEATS = 3


def peak_bytes(subject: Subject, way: str, amp: bool, threads: int) -> int:
    """Run a few steps and return the most memory that was in use, in bytes.

    On a GPU that is what torch's allocator held. On a CPU it is the resident set of the whole
    process, imports included: it means something only in a process that does nothing else.

    Args:
        subject: What is trained.
        way: A key of ``STEPS``.
        amp: Whether to use autocast.
        threads: torch's.
    """
    torch.set_num_threads(threads)
    register_all_modules()
    MMLogger.get_instance('benchmark', log_level='ERROR')
    step = STEPS[way](subject, amp)
    for _ in range(REPEATS):
        torch.manual_seed(0)
        step()
    if subject.device.type == 'cuda':
        return torch.cuda.max_memory_allocated(subject.device)
    return _peak_resident_set()


def _peak_resident_set() -> int:
    status = Path('/proc/self/status')
    if status.exists():
        # ru_maxrss would begin with that of the process which started this one.
        return 1024 * int(re.search(r'VmHWM:\s+(\d+) kB', status.read_text('ascii'))[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS
