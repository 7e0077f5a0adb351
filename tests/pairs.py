"""What the tests of all detectors share: a student and its teacher of each case."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dense_cases
import helpers
import mask_query_cases
import query_cases
import torch
import two_stage_cases
from cases import Case
from mmengine.config import ConfigDict
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

CASES: list[Case] = [
    *two_stage_cases.CASES,
    *dense_cases.CASES,
    *query_cases.CASES,
    *mask_query_cases.CASES,
]


@dataclass(frozen=True)
class Pair:
    """A case, its plain teacher in eval mode, that one's checkpoint and the distilled student."""

    case: Case
    teacher: nn.Module
    checkpoint: Path
    detector: nn.Module


@dataclass(frozen=True)
class Step:
    """What a step of a detector computed, without the update.

    Attributes:
        detector: The detector after the step, with its gradients.
        logs: Losses and diagnostics by name.
        grads: Gradients by the name of their parameter, None for those without.
        rng_state: State of torch's random number generator after the step.
        calls: How often each module ran, by name.
    """

    detector: nn.Module
    logs: dict[str, Any]
    grads: dict[str, Tensor | None]
    rng_state: Tensor
    calls: Counter[str]


@dataclass(frozen=True)
class Steps:
    """A step of a distilled student and of the plain one, of the same weights, batch and seed.

    Attributes:
        ours: The distilled student's.
        plain: The plain student's.
        teacher_calls: How often each module of the teacher ran, by name.
    """

    ours: Step
    plain: Step
    teacher_calls: Counter[str]


def distilled_config(case: Case, checkpoint: Path, **changes: Any) -> ConfigDict:
    """The case's student with its teacher; ``changes`` override either dict."""
    cfg = copy.deepcopy(case.student)
    cfg.type = case.detector
    cfg.teacher = dict(
        config=dict(model=case.teacher.to_dict()),
        checkpoint=str(checkpoint),
        **case.teacher_options,
    )
    cfg.teacher.update(changes.get('teacher', {}))
    cfg.distillation = {**case.distillation, **changes.get('distillation', {})}
    return cfg


def make_teacher(
    case: Case, cfg: ConfigDict, checkpoint: Path, classes: tuple[str, ...]
) -> nn.Module:
    teacher = helpers.build(cfg, seed=1)
    helpers.randomise_batchnorm(teacher)
    case.sharpen(teacher, seed=3)
    save(teacher, checkpoint, classes)
    return teacher.eval()


def save(detector: nn.Module, checkpoint: Path, classes: tuple[str, ...]) -> None:
    meta = dict(dataset_meta=dict(classes=classes))
    torch.save(dict(meta=meta, state_dict=detector.state_dict()), checkpoint)


def plain(case: Case, like: nn.Module | None = None) -> nn.Module:
    """The plain student in train mode, with the weights of another one."""
    detector = helpers.build(case.student)
    if like is not None:
        detector.load_state_dict(like.state_dict())
    return detector.train()


@contextmanager
def count_calls(detector: nn.Module) -> Iterator[Counter[str]]:
    """Count the runs of every module of a detector, by name."""
    calls: Counter[str] = Counter()
    handles = [
        module.register_forward_hook(lambda m, a, out, name=name: calls.update([name]))
        for name, module in detector.named_modules()
    ]
    yield calls
    for handle in handles:
        handle.remove()


def one_step(detector: nn.Module, case: Case) -> Step:
    """Compute the losses and gradients of a step."""
    with count_calls(detector) as calls:
        torch.manual_seed(5)
        total, logs = detector.parse_losses(helpers.loss(detector, case.batch()))
        total.backward()
    grads = {name: p.grad for name, p in detector.named_parameters()}
    return Step(detector, logs, grads, torch.get_rng_state(), calls)


def take_steps(case: Case, detector: nn.Module) -> Steps:
    """Compute a step of a copy of a distilled detector, and the plain student's."""
    ours, student = copy.deepcopy(detector).train(), plain(case, like=detector)
    plain_step = one_step(student, case)
    with count_calls(ours.teacher.network.detector) as teacher_calls:
        step = one_step(ours, case)
    return Steps(step, plain_step, teacher_calls)


def assert_same_tensors(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert (a[key] is None) == (b[key] is None), key
        assert a[key] is None or torch.equal(torch.as_tensor(a[key]), torch.as_tensor(b[key])), key


def distillation_losses(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in losses.items() if 'loss_kd' in name}


def gradient_norm(detector: nn.Module, loss: Tensor) -> float:
    parameters = [p for p in detector.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return sum(float(g.square().sum()) for g in grads if g is not None) ** 0.5


def freeze_batchnorm(detector: nn.Module) -> None:
    for module in detector.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
