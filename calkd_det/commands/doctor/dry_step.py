"""Run training steps on a real batch, without updating the weights."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from calkd_det.commands.doctor.finding import Finding
from calkd_det.teachers import TeacherNetwork

_REPEATS = 2


def check_step(student: nn.Module, loader: DataLoader, device: torch.device) -> Iterator[Finding]:
    """Compute losses and gradients of a batch, and measure the teacher's share of the cost.

    Args:
        student: The detector with its initial weights, and with its teacher where it distils.
        loader: The loader of training batches.
        device: Where the step runs.
    """
    student.to(device).train()
    batch = student.data_preprocessor(next(iter(loader)), True)
    distilling = getattr(student, 'distilling', False)
    meter = _TeacherMeter(student.teacher.network, device) if distilling else None
    logs, _, memory = _step(student, batch, meter)  # also warms up caches and kernels
    yield from _losses(logs, len(batch['data_samples']))
    if meter is None:
        return
    shown = {key: value for key, value in logs.items() if _is_distillation(key)}
    yield Finding('ok', 'distillation', f'{_format_values(shown)}; the student is untrained')
    times = []
    for _ in range(_REPEATS):
        _, whole, _ = _step(student, batch, meter)
        times.append((whole - meter.seconds, meter.seconds))
    alone, teacher = min(times, key=sum)
    text = f'the teacher adds {100 * teacher / alone:.0f} % to the time of a step on this machine'
    if memory:
        text += (
            f'; memory, without autocast, at the peak of a step {memory / 2**30:.2f} GiB, of the '
            f"teacher's forward {meter.memory / 2**30:.2f} GiB beside its weights"
        )
    yield Finding('ok', 'cost', text)


def _losses(logs: dict[str, float], num_images: int) -> Iterator[Finding]:
    losses = {key: value for key, value in logs.items() if 'loss' in key and key != 'loss'}
    bad = {key: value for key, value in losses.items() if not abs(value) < float('inf')}
    if bad:
        yield Finding('error', 'training step', f'not finite: {_format_values(bad)}')
        return
    alone = {key: value for key, value in losses.items() if not _is_distillation(key)}
    text = f'a batch of {num_images} images, every loss finite: {_format_values(alone)}'
    yield Finding('ok', 'training step', text)


def _is_distillation(key: str) -> bool:
    return 'loss_kd' in key or 'teacher_' in key


def _format_values(values: dict[str, float]) -> str:
    return ', '.join(f'{key} {value:.4g}' for key, value in values.items())


def _step(
    student: nn.Module, batch: dict[str, Any], meter: _TeacherMeter | None
) -> tuple[dict[str, float], float, int]:
    """Run a step; return its values for the log, its seconds, and on a GPU its peak in bytes."""
    device = next(student.parameters()).device
    if meter is not None:
        meter.reset()
    _reset_peak(device)
    start = _now(device)
    total, logs = student.parse_losses(student(**batch, mode='loss'))
    total.backward()
    seconds = _now(device) - start
    peak = max(_peak(device), 0 if meter is None else meter.peak_before)
    student.zero_grad(set_to_none=True)
    return {key: float(value) for key, value in logs.items()}, seconds, peak


class _TeacherMeter:
    """Meter of the seconds and, on a GPU, the bytes that a teacher takes in a step.

    Attributes:
        seconds: The time of the teacher's features and logits.
        memory: Bytes at the teacher's peak, beyond what was allocated before it ran.
        peak_before: Bytes at the peak of the rest of the step.
    """

    def __init__(self, network: TeacherNetwork, device: torch.device) -> None:
        self._device = device
        self.reset()
        extract_feat = network.extract_feat

        def measured(*args: Any) -> tuple[Tensor, ...]:
            self._begin()
            feats = extract_feat(*args)
            self._end()
            return feats

        network.extract_feat = measured
        network.register_forward_pre_hook(lambda network, args: self._begin())
        network.register_forward_hook(lambda network, args, answers: self._end())

    def reset(self) -> None:
        """Begin a new step."""
        self.seconds = 0.0
        self.memory = self.peak_before = 0

    def _begin(self) -> None:
        self.peak_before = max(self.peak_before, _peak(self._device))
        _reset_peak(self._device)
        self._allocated = _peak(self._device)
        self._start = _now(self._device)

    def _end(self) -> None:
        self.seconds += _now(self._device) - self._start
        self.memory = max(self.memory, _peak(self._device) - self._allocated)


def _now(device: torch.device) -> float:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == 'cuda' else 0


def _reset_peak(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
