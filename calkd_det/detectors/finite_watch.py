"""Tells of logits that are not finite, without making the host wait for the device."""

from __future__ import annotations

import logging

import torch
from mmengine.logging import MessageHub, print_log
from torch import Tensor

from calkd_det.taps import ClassifierSamples


class FiniteWatch:
    """Reports once, in the log, whose class logits first held NaN or infinite values.

    Nothing else is done about them: the loss is what it is, as the plain detector's would be.
    What :meth:`note` sees is reported in the next step, when it is on the host anyway. A copy,
    also a pickled one, watches anew.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._iteration = 0
        self._finite: Tensor | None = None  # on the host: of the teacher, of the student
        self._arrived: torch.cuda.Event | None = None
        self._reported = False

    def __reduce__(self) -> tuple:
        return FiniteWatch, ()

    @torch.no_grad()
    def note(self, samples: list[ClassifierSamples], answers: list[Tensor]) -> None:
        """Notes a step.

        Args:
            samples: What the student's classifiers saw.
            answers: For each of them the teacher's logits.
        """
        self._steps += 1
        # The student's forward has waited for the device several times since the step before.
        self.report()
        if self._reported or self._finite is not None:
            return
        self._iteration = MessageHub.get_current_instance().get_info('iter', self._steps - 1) + 1
        teacher = torch.stack([logits.isfinite().all() for logits in answers])
        student = torch.stack([group.logits.isfinite().all() for group in samples])
        finite = torch.stack([teacher.all(), student.all()])
        if finite.is_cuda:
            finite = finite.to('cpu', non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        self._finite = finite

    def report(self) -> None:
        """Reports the step that was noted last, where its figures have arrived."""
        if self._finite is None or (self._arrived is not None and not self._arrived.query()):
            return
        finite = self._finite.tolist()
        self._finite = None
        if all(finite):
            return
        self._reported = True
        who = ' and '.join(name for name, ok in zip(('teacher', 'student'), finite) if not ok)
        print_log(
            f'Iteration {self._iteration}: class logits of the {who} are NaN or infinite, and so '
            'is the loss of distillation. Training goes on as that of the plain detector would; '
            'this is said once.',
            logger='current',
            level=logging.WARNING,
        )
