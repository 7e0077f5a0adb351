"""What the tests of all detectors share: a student and its teacher of each case."""

from __future__ import annotations

import copy
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


def one_step(detector: nn.Module, case: Case) -> tuple[dict[str, Any], dict[str, Any], Tensor]:
    """Losses, gradients and the state of the random number generator after a step."""
    torch.manual_seed(5)
    total, logs = detector.parse_losses(helpers.loss(detector, case.batch()))
    total.backward()
    grads = {name: p.grad for name, p in detector.named_parameters()}
    return logs, grads, torch.get_rng_state()


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
