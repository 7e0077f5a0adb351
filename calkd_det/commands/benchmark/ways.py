"""The ways to make a step that are timed against each other."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from calkd_det.calibration import TemperatureScaling
from calkd_det.commands.benchmark.subject import Subject, detached
from calkd_det.detectors.distillation import build_losses
from calkd_det.knowledge import HeadAnswer, HeadSamples
from calkd_det.taps import find_tap
from calkd_det.teachers.folding import fold_batchnorm

# From a subject, and whether to use autocast, to one step, which returns its loss of distillation
# or None.
Prepare = Callable[[Subject, bool], Callable[[], 'float | None']]


def train_step(
    subject: Subject,
    detector: nn.Module,
    amp: bool,
    losses: Callable[[dict], dict] | None = None,
) -> Callable[[], float | None]:
    """Prepare a training step, from a data loader's batch to the updated weights.

    Args:
        subject: Has the batch and the optimizer.
        detector: What is trained.
        amp: Whether to use autocast.
        losses: Of a normalised batch; None for the detector's own.
    """
    optimizer = subject.optimizer(detector)
    losses = losses or (lambda data: detector(**data, mode='loss'))

    def step() -> float | None:
        with autocast(subject.device, amp):
            logs = losses(detector.data_preprocessor(subject.batch, True))
        total, logs = detector.parse_losses(logs)
        optimizer.update_params(total)
        kd = [float(value.detach()) for name, value in logs.items() if 'loss_kd' in name]
        return sum(kd) if kd else None

    return step


def autocast(device: torch.device, amp: bool) -> AbstractContextManager:
    """Return autocast as mmengine's AMP sets it up for a GPU, bfloat16 on a CPU."""
    if not amp:
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if device.type == 'cpu' else torch.float16)


def student_alone(subject: Subject, amp: bool) -> Callable[[], float | None]:
    """Prepare the plain student's training step."""
    return train_step(subject, subject.student(), amp)


def calkd(**options: Any) -> Prepare:
    """Return what prepares this project's training step."""

    def prepare(subject: Subject, amp: bool) -> Callable[[], float | None]:
        return train_step(subject, subject.distilled(**options), amp)

    return prepare


def compiled_teacher(subject: Subject, amp: bool) -> Callable[[], float | None]:
    """Prepare this project's step with backbone and neck of the teacher under ``torch.compile``."""
    distilled = subject.distilled()
    network = distilled.teacher.network
    network.detector = copy.deepcopy(network.detector)  # the other ways share it
    for part in (network.detector.backbone, network.detector.neck):
        part.compile()
    return train_step(subject, distilled, amp)


def teacher_alone(subject: Subject, amp: bool) -> Callable[[], float | None]:
    """Prepare the teacher's bare inference on the samples of a step of the student."""
    data, samples = loss_samples(subject, amp)
    teacher = subject.teacher()
    tap = find_tap(teacher, 'the teacher')
    tap.keep(teacher)
    teacher = fold_batchnorm(teacher.cpu()).to(subject.device)

    @torch.no_grad()
    def step() -> None:
        with autocast(subject.device, amp):
            feats = teacher.extract_feat(data['inputs'])
            feats = tuple(feat.to(data['inputs'].dtype) for feat in feats)
            feats = tap.prepare(teacher, feats)
            for group in samples:
                tap.answer(teacher, feats, group)

    return step


def whole_loss_mode(subject: Subject, amp: bool) -> Callable[[], float | None]:
    """Prepare a step in which the teacher computes all of its own losses, on RoIs of its own.

    So does MMRazor's ``SingleTeacherDistill``: training mode with BatchNorm's statistics fixed,
    no gradients, class logits recorded on their way. The logits of the two networks belong to
    different RoIs; only the cost is of interest here.
    """
    student, teacher = subject.student(), subject.teacher()
    tap = find_tap(student, 'the student')
    compare = comparison(subject)
    teacher.train()
    for module in teacher.modules():
        if isinstance(module, _BatchNorm):
            module.eval()

    def losses(data: dict) -> dict:
        with torch.no_grad(), tap.record(teacher) as theirs:
            teacher(**data, mode='loss')
        with tap.record(student) as own:
            logs = student(**data, mode='loss')
        answers = []
        for index, (group, other) in enumerate(zip(own, theirs)):
            count = min(len(group), len(other))
            own[index] = _first(group, count)
            answers.append(other.logits[:count])
        return {**logs, **compare(own, answers)}

    return train_step(subject, student, amp, losses)


def second_forward(subject: Subject, amp: bool) -> Callable[[], float | None]:
    """Prepare a step in which the student's head runs a second time on the samples of its loss.

    So does mdistiller's detection code: box head and predictor of student and teacher are run on
    the sampled proposals after the student's losses. The teacher is as trained, its BatchNorm
    layers apart.
    """
    student, teacher = subject.student(), subject.teacher()
    tap = find_tap(student, 'the student')
    compare = comparison(subject)
    feats: list[tuple[Tensor, ...]] = []
    student.neck.register_forward_hook(lambda module, args, output: feats.append(output))

    def losses(data: dict) -> dict:
        feats.clear()
        with tap.record(student) as samples:
            logs = student(**data, mode='loss')
        own_feats = tap.prepare(student, feats[0])
        again = [
            replace(group, logits=tap.answer(student, own_feats, group).logits) for group in samples
        ]
        with torch.no_grad():
            teacher_feats = tap.prepare(teacher, teacher.extract_feat(data['inputs']))
            answers = [tap.answer(teacher, teacher_feats, group).logits for group in samples]
        return {**logs, **compare(again, answers)}

    return train_step(subject, student, amp, losses)


def kd_part(subject: Subject, amp: bool) -> Callable[[], float | None]:
    """Prepare all of this project's step that is neither network.

    Calibration, class matching, loss with its gradient by the student's logits, what is logged
    of the teacher and the watch for logits that are not finite, on logits that are there already.
    """
    data, samples = loss_samples(subject, amp)
    distilled = subject.distilled()
    network = distilled.teacher.network
    with torch.no_grad(), autocast(subject.device, amp):
        feats = network.detector.extract_feat(data['inputs'])
        feats = network.taps.prepare(network.detector, feats)
        raw = [network.taps.answer(network.detector, feats, group) for group in samples]

    @torch.no_grad()
    def answers(*args: Any) -> list[HeadAnswer]:
        return [HeadAnswer(network.calibrate(answer.logits.clone())) for answer in raw]

    distilled.teacher = answers

    def step() -> float:
        logs = distilled.distillation_losses(feats, samples)
        total = sum(value for name, value in logs.items() if 'loss' in name)
        total.backward()
        return float(total.detach())

    return step


def comparison(
    subject: Subject,
) -> Callable[[Sequence[HeadSamples], Sequence[Tensor]], dict[str, Tensor]]:
    """Return the config's losses of distillation, without anything else."""
    calibrate = TemperatureScaling()
    losses = build_losses(subject.cfg.model.distillation)

    def compare(samples: Sequence[HeadSamples], answers: Sequence[Tensor]) -> dict[str, Tensor]:
        return {
            f'{group.name}.{name}': loss(
                group.logits, calibrate(answer), group.labels, group.weights
            )
            for group, answer in zip(samples, answers)
            for name, loss in losses.items()
        }

    return compare


def loss_samples(subject: Subject, amp: bool) -> tuple[dict, list[HeadSamples]]:
    """Return a normalised batch and the samples of the plain student's loss."""
    student = subject.student()
    data = student.data_preprocessor(subject.batch, True)
    torch.manual_seed(0)
    with autocast(subject.device, amp), find_tap(student, 'the student').record(student) as samples:
        student(**data, mode='loss')
    return data, detached(samples)


def _first(group: HeadSamples, count: int) -> HeadSamples:
    columns = ('logits', 'labels', 'weights')  # what losses look at
    return replace(group, **{name: getattr(group, name)[:count] for name in columns})


STUDENT, TEACHER, DEFAULT, KD_PART = 'student alone', 'teacher alone', 'CalKD', 'KD part'
COMPARED: dict[str, Prepare] = {
    'whole loss mode': whole_loss_mode,
    'second forward': second_forward,
    'CalKD, compiled': compiled_teacher,
    'CalKD, bfloat16': calkd(precision='bfloat16'),
}
WAYS: dict[str, Prepare] = {
    STUDENT: student_alone,
    TEACHER: teacher_alone,
    DEFAULT: calkd(),
    KD_PART: kd_part,
    **COMPARED,
}
