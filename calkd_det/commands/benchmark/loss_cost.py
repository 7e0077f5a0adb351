"""Memory and time of the losses that compare large tensors, on random values."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.losses import FocalLoss, QualityFocalLoss
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from calkd_det.commands.benchmark.timing import alternate
from calkd_det.detectors.finite_watch import FiniteWatch
from calkd_det.knowledge import HeadAnswer, HeadSamples
from calkd_det.losses import BinaryKDLoss, CWDLoss, FeatureLoss, PKDLoss
from calkd_det.losses.binary_kd_loss import Weighting

WEIGHTINGS: tuple[Weighting, ...] = ('difference', 'foreground', 'all')
FOREGROUND_SHARE = 0.002  # of the samples of a dense head, an order of magnitude


@dataclass(frozen=True)
class LossCost:
    """What a loss costs.

    Attributes:
        name: Which loss.
        kept: Memory that lives from the forward pass to the backward pass, without inputs, in
            units of the logits tensor.
        peak: Most memory in use in forward and backward pass, without inputs but with the
            gradient by the logits, in the same unit.
        seconds: Median of a forward and a backward pass.
    """

    name: str
    kept: float
    peak: float
    seconds: float


def plain_binary_kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    tau: float = 1.0,
    weighting: Weighting = 'difference',
) -> Tensor:
    """Compute :func:`~calkd_det.losses.binary_kd_loss` by its formula, and leave all to autograd.

    It is what the chunked computation is compared with. Arguments and result are those of
    ``binary_kd_loss`` in a single process, in float32 or the greater precision of the logits.
    """
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    student = student_logits.to(dtype) / tau
    teacher = teacher_logits.detach().to(dtype) / tau
    score = teacher.sigmoid()
    divergence = F.binary_cross_entropy_with_logits(student, score, reduction='none')
    divergence = divergence - F.binary_cross_entropy_with_logits(teacher, score, reduction='none')
    foreground = (labels < student_logits.shape[1]) & (weights > 0)
    weights = weights.to(dtype)
    if weighting == 'difference':
        divergence = divergence * (score - student.sigmoid()).abs()
    elif weighting == 'foreground':
        weights = weights * foreground
    return tau**2 * (weights * divergence.sum(dim=1)).sum() / foreground.sum().clamp(min=1)


def measure_losses(samples: int, classes: int, dtype: torch.dtype, rounds: int) -> list[LossCost]:
    """Measure the losses of a dense head and of feature maps, in turn in this process, on the CPU.

    The feature maps are one of ``classes`` channels and ``samples`` places: as large as the logits.
    """
    torch.manual_seed(0)
    student, teacher = torch.randn(2, samples, classes).sub(4).to(dtype)
    labels = torch.full((samples,), classes)
    foreground = torch.rand(samples) < FOREGROUND_SHARE
    labels[foreground] = torch.randint(classes, (samples,))[foreground]
    weights = torch.ones(samples)
    student.requires_grad_()

    losses: dict[str, Callable[[], Tensor]] = {}
    for weighting in WEIGHTINGS:
        chunked = BinaryKDLoss(weighting=weighting)
        plain = partial(plain_binary_kd_loss, weighting=weighting)
        for name, loss in (('BinaryKDLoss', chunked), ('the same by its formula', plain)):
            losses[f'{name}, {weighting!r}'] = partial(loss, student, teacher, labels, weights)
    focal, quality_focal, quality = FocalLoss(), QualityFocalLoss(), torch.rand(samples).to(dtype)
    losses["mmdet's QualityFocalLoss"] = partial(quality_focal, student, (labels, quality))
    losses["mmdet's FocalLoss"] = partial(focal, student, labels)

    valid = [torch.ones(1, 1, 1, samples, dtype=torch.bool)]

    def compare_maps(loss: FeatureLoss) -> Tensor:
        return loss(
            *([logits.view(1, classes, 1, samples)] for logits in (student, teacher)), valid
        )

    for loss in (PKDLoss(), CWDLoss()):
        losses[type(loss).__name__] = partial(compare_maps, loss)

    def step(loss: Callable[[], Tensor]) -> float:
        student.grad = None
        value = loss()
        value.backward()
        return value.item()

    seconds, _ = alternate(
        {name: partial(step, loss) for name, loss in losses.items()},
        rounds=rounds,
        warm_up=1,
        device=torch.device('cpu'),
    )
    unit = student.numel() * student.element_size()
    costs = []
    for name, loss in losses.items():
        kept, peak = loss_memory(loss, student)
        costs.append(LossCost(name, kept / unit, peak / unit, statistics.median(seconds[name])))
    group = HeadSamples(student, labels, weights, torch.zeros(1, 2), 'sigmoid')
    watch = {'FiniteWatch': lambda: FiniteWatch().note([group], [HeadAnswer(teacher)])}
    seconds, _ = alternate(watch, rounds=rounds, warm_up=1, device=torch.device('cpu'))
    peak, _ = traced_bytes(watch['FiniteWatch'])
    costs.append(LossCost('FiniteWatch', 0.0, peak / unit, statistics.median(*seconds.values())))
    return costs


def loss_memory(loss: Callable[[], Tensor], logits: Tensor) -> tuple[int, int]:
    """Return the bytes that a loss keeps for its backward pass, and those at its peak."""
    logits.grad = None
    values: list[Tensor] = []
    forward_peak, kept = traced_bytes(lambda: values.append(loss()))
    backward_peak, _ = traced_bytes(values[0].backward)
    logits.grad = None
    return kept, max(forward_peak, kept + backward_peak)


def traced_bytes(function: Callable[[], object]) -> tuple[int, int]:
    """Call a function, and return the most bytes it had allocated on the CPU and those left."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = profiler.profiler.kineto_results.events()
    changes = [event for event in events if event.name() == '[memory]']
    peak = current = 0
    for change in sorted(changes, key=_start):
        current += change.nbytes()
        peak = max(peak, current)
    return peak, current


def _start(event: Any) -> int:
    # torch 2.1 has microseconds only.
    return event.start_ns() if hasattr(event, 'start_ns') else event.start_us()


def cost_table(costs: Sequence[LossCost], samples: int, classes: int, dtype: torch.dtype) -> str:
    """Return a Markdown table, one line a loss."""
    base = next(cost.seconds for cost in costs if 'formula' in cost.name)
    lines = [
        f'Logits of {samples} samples and {classes} classes, {str(dtype).split(".")[1]}; CPU, '
        f'{torch.get_num_threads()} threads, torch {torch.__version__}.',
        '',
        '| loss | kept for backward, in logits tensors | peak, in logits tensors | time '
        "/ the formula's, 'difference' |",
        '|---|---:|---:|---:|',
    ]
    lines += [
        f'| {cost.name} | {cost.kept:.2f} | {cost.peak:.2f} | {cost.seconds / base:.2f} |'
        for cost in costs
    ]
    return '\n'.join(lines)
