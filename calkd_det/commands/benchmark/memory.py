"""Peak memory of a step."""

from __future__ import annotations

import re
import resource
from pathlib import Path

import torch

from calkd_det.commands.benchmark.subject import Subject
from calkd_det.commands.benchmark.ways import Way

STEPS = 3


def peak_bytes(subject: Subject, way: Way, amp: bool) -> int:
    """Runs a few steps and gives the most memory that was in use.

    On a GPU that is what torch's allocator held. On a CPU it is the resident set of the whole
    process, imports included, so that it means something only in a process that does nothing
    else.
    """
    step = way.prepare(subject, amp)
    for _ in range(STEPS):
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
