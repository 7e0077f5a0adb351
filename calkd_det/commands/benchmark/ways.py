"""The steps that are timed against each other, and the parts of a step that are timed alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from calkd_det.commands.benchmark.subject import Subject, as_leaves
from calkd_det.knowledge import Knowledge, kind_of
from calkd_det.taps import find_taps
from calkd_det.taps.query_matching import match_queries
from calkd_det.taps.query_samples import QuerySamples
from calkd_det.teachers.folding import fold_batchnorm

# A step returns its loss of distillation; None where it has none.
Step = Callable[[], 'float | None']

STUDENT, TEACHER, DEFAULT = 'student alone', 'teacher alone', 'CalKD'
CALIBRATION = 'calibration and diagnostics'
MATCHING = 'matching of queries, a part of the row above'


def train_step(subject: Subject, detector: nn.Module, amp: bool) -> Step:
    """Prepare a training step, from a data loader's batch to the updated weights.

    Args:
        subject: Has the batch and the optimizer.
        detector: What is trained.
        amp: Whether to use autocast.
    """
    optimizer = subject.optimizer(detector)

    def step() -> float | None:
        with autocast(subject.device, amp):
            logs = detector(**detector.data_preprocessor(subject.batch, True), mode='loss')
        total, logs = detector.parse_losses(logs)
        optimizer.update_params(total)
        kd = [float(value.detach()) for name, value in logs.items() if 'loss_kd' in name]
        return sum(kd) if kd else None

    return step


def student_step(subject: Subject, amp: bool) -> Step:
    """Prepare the plain student's training step."""
    return train_step(subject, subject.student(), amp)


def calkd_step(subject: Subject, amp: bool, **teacher_options: Any) -> Step:
    """Prepare this project's training step, with changes of the config's ``teacher``."""
    return train_step(subject, subject.distilled(**teacher_options), amp)


STEPS: dict[str, Callable[[Subject, bool], Step]] = {
    STUDENT: student_step,
    DEFAULT: calkd_step,
    f'{DEFAULT}, bfloat16': partial(calkd_step, precision='bfloat16'),
    f'{DEFAULT}, float16': partial(calkd_step, precision='float16'),
}


def part_steps(subject: Subject, amp: bool) -> dict[str, Step]:
    """Prepare what this project adds to a step of the student, part by part.

    All parts work on the knowledge of one step of the student, which is there already.

    Returns:
        The teacher's bare inference, under ``TEACHER``. Each loss that is switched on, under the
        name that it is logged by: its value and its gradient by the student's knowledge. All that
        is left, under ``CALIBRATION``: calibration, class matching, the figures for the log and
        the checks for values that are not finite. Of detection transformers also the matching of
        queries, under ``MATCHING``, which calibration includes.
    """
    distilled = subject.distilled()
    network = distilled.teacher.network
    data, recorded = record_knowledge(subject, distilled.knowledge_kinds, amp)
    knowledge = network.taught(recorded)
    questions = [replace(p, name=network.classifiers.get(p.name, p.name)) for p in knowledge]
    run_teacher = bare_teacher(subject, distilled.knowledge_kinds, data['inputs'], questions, amp)
    answers = run_teacher()

    @torch.no_grad()
    def calibrate(*args: Any) -> list[Any]:
        return [p.calibrate(answer, network.calibrate) for p, answer in zip(knowledge, answers)]

    answered = [p.without_non_finite(answer) for p, answer in zip(knowledge, calibrate())]
    losses = distilled.distillation
    distilled.distillation, distilled.teacher = {}, calibrate

    def teacher_alone() -> None:
        run_teacher()

    def calibration() -> None:
        with autocast(subject.device, amp):
            distilled.distillation_losses((), knowledge)

    def match() -> None:
        with autocast(subject.device, amp):
            for queries, others, activation in pairs:
                match_queries(queries, others, activation)

    pairs = [
        (piece.locations.queries, answer.queries, piece.activation)
        for piece, answer in zip(knowledge, answers)
        if isinstance(piece, QuerySamples)
    ]
    return {
        TEACHER: teacher_alone,
        **{
            name: partial(compare, loss, answered, autocast(subject.device, amp))
            for name, loss in losses.items()
            if loss.loss_weight
        },
        CALIBRATION: calibration,
        **({MATCHING: match} if pairs else {}),
    }


def compare(
    loss: nn.Module,
    answered: Sequence[tuple[Knowledge, Any]],
    context: AbstractContextManager,
) -> float:
    """Compute a loss of distillation and its gradient by the student's knowledge.

    Args:
        loss: The loss.
        answered: The student's knowledge of all kinds, its values leaves of the graph, each with
            the teacher's answer.
        context: Of the forward pass.

    Returns:
        The value of the loss.
    """
    own = [(piece, answer) for piece, answer in answered if kind_of(loss) in piece.kinds]
    with context:
        total = sum(piece.factor * piece.compare(loss, answer) for piece, answer in own)
    total.backward()
    for piece, _ in own:
        for values in piece.computed():
            values.grad = None
    return float(total.detach())


def bare_teacher(
    subject: Subject,
    kinds: frozenset[str],
    images: Tensor,
    questions: Sequence[Knowledge],
    amp: bool,
) -> Callable[[], list[Any]]:
    """Prepare the least that a teacher must compute: features and the branches of some kinds.

    Args:
        subject: Has the teacher.
        kinds: The kinds of knowledge that the losses compare.
        images: The normalised batch.
        questions: The student's knowledge, by the names of the teacher's classifiers.
        amp: Whether to use autocast.

    Returns:
        A function that gives the answers, not calibrated.
    """
    teacher = subject.teacher()
    taps = find_taps(teacher, kinds, 'model.teacher')
    taps.keep(teacher)
    teacher = fold_batchnorm(teacher.cpu()).to(subject.device)

    @torch.no_grad()
    def run() -> list[Any]:
        with autocast(subject.device, amp):
            feats = taps.prepare(teacher, teacher.extract_feat(images))
            return taps.answers(teacher, feats, questions)

    return run


def record_knowledge(
    subject: Subject, kinds: frozenset[str], amp: bool
) -> tuple[dict[str, Any], list[Knowledge]]:
    """Return a normalised batch, and the plain student's knowledge in its loss on it.

    The values of the knowledge are leaves.
    """
    student = subject.student()
    data = student.data_preprocessor(subject.batch, True)
    taps = find_taps(student, kinds, 'model')
    torch.manual_seed(0)
    with autocast(subject.device, amp), taps.record(student, data['data_samples']) as knowledge:
        student(**data, mode='loss')
    return data, [as_leaves(piece) for piece in knowledge]


def autocast(device: torch.device, amp: bool) -> AbstractContextManager:
    """Return autocast as mmengine's AMP sets it up for a GPU, bfloat16 on a CPU."""
    if not amp:
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if device.type == 'cpu' else torch.float16)
