"""What a teacher that is asked about a share of the RoIs leaves of the loss and its gradient."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.runner import Runner
from torch import Tensor

from calkd_det.commands.benchmark.subject import plain_model
from calkd_det.detectors.roi_fraction import hardest_samples
from calkd_det.taps import find_tap
from calkd_det.teachers.checkpoint import load_weights

FRACTIONS = (1.0, 0.5, 0.25, 0.125)


@dataclass(frozen=True)
class FractionError:
    """Means over batches.

    Attributes:
        fraction: Share of the RoIs.
        loss: The loss, by that of all RoIs.
        cosine: Cosine of the gradients by the student's logits.
    """

    fraction: float
    loss: float
    cosine: float


def measure_fractions(
    cfg: Config, student_checkpoint: Path, num_batches: int, device: torch.device
) -> list[FractionError]:
    """Compares the KD loss on shares of the RoIs with that on all, on training batches.

    Args:
        cfg: A CalKD config of a two-stage detector, with the checkpoint of its teacher.
        student_checkpoint: Of a trained student.
        num_batches: How many batches of the training data.
        device: Where to compute.
    """
    detector = MODELS.build(copy.deepcopy(cfg.model))
    load_weights(detector, str(student_checkpoint))
    detector.to(device).train()
    plain = MODELS.build(plain_model(cfg))
    plain.load_state_dict(detector.state_dict())
    plain.to(device).train()
    detector.teacher.build(detector)
    tap = find_tap(plain, 'model')
    found: dict[float, list[tuple[Tensor, Tensor]]] = {fraction: [] for fraction in FRACTIONS}
    for batch in islice(Runner.build_dataloader(cfg.train_dataloader, seed=0), num_batches):
        data = plain.data_preprocessor(batch, True)
        with torch.no_grad(), tap.record(plain) as samples:
            plain(**data, mode='loss')
        shapes = [data_sample.img_shape[:2] for data_sample in data['data_samples']]
        logits = samples[0].logits.detach().requires_grad_()
        for fraction in FRACTIONS:
            kept = hardest_samples(replace(samples[0], logits=logits), fraction)
            logs = detector.distillation_losses(data['inputs'], shapes, [kept])
            loss = sum(value for name, value in logs.items() if 'loss' in name)
            (gradient,) = torch.autograd.grad(loss, logits)
            found[fraction].append((loss.detach(), gradient))
    whole = found[1.0]
    total = sum(float(loss) for loss, _ in whole)
    return [
        FractionError(
            fraction,
            sum(float(loss) for loss, _ in values) / total,
            sum(
                float(torch.cosine_similarity(one.flatten(), other.flatten(), dim=0))
                for (_, one), (_, other) in zip(values, whole)
            )
            / len(values),
        )
        for fraction, values in found.items()
    ]


def fraction_table(errors: Sequence[FractionError]) -> str:
    """One line a share."""
    lines = [
        "| `roi_fraction` | loss, of all RoIs' | cosine of the gradient with all RoIs' |",
        '|---|---|---|',
    ]
    lines += [
        f'| {error.fraction:g} | {100 * error.loss:.0f} % | {error.cosine:.3f} |'
        for error in errors
    ]
    return '\n'.join(lines)
