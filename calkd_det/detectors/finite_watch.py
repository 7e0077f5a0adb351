"""Report once that class logits or features are not finite."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.logging import MessageHub, print_log
from torch import Tensor

from calkd_det.knowledge import Knowledge


class FiniteWatch:
    """Watch for values that are NaN or infinite, with one report in the log.

    A step is checked on the device and reported in the next step. By then its result has arrived
    on the host without waiting. A copy of this object, also a pickled one, begins anew.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._iteration = 0
        self._finite: Tensor | None = None  # on the host: of the teacher, of the student
        self._arrived: torch.cuda.Event | None = None
        self._what = ''
        self._reported = False

    def __reduce__(self) -> tuple:
        return FiniteWatch, ()

    @torch.no_grad()
    def note(self, knowledge: Sequence[Knowledge], answers: Sequence[Any]) -> None:
        """Check the values of a step.

        Args:
            knowledge: What the student computed.
            answers: What the teacher answered to each piece of it.
        """
        self._steps += 1
        # The student's forward has waited for the device several times since the step before.
        self.report()
        if self._reported or self._finite is not None:
            return
        self._iteration = MessageHub.get_current_instance().get_info('iter', self._steps - 1) + 1
        teacher = [x for piece, answer in zip(knowledge, answers) for x in piece.answered(answer)]
        student = [tensor for piece in knowledge for tensor in piece.computed()]
        finite = torch.stack(
            [torch.stack([_all_finite(x) for x in side]).all() for side in (teacher, student)]
        )
        self._what = ' or '.join(dict.fromkeys(piece.noun for piece in knowledge))
        if finite.is_cuda:
            finite = finite.to('cpu', non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        self._finite = finite

    def report(self) -> None:
        """Report the step that was checked last, if its result has arrived on the host."""
        if self._finite is None or (self._arrived is not None and not self._arrived.query()):
            return
        finite = self._finite.tolist()
        self._finite = None
        if all(finite):
            return
        self._reported = True
        teacher_ok, student_ok = finite
        if not teacher_ok:
            print_log(
                f'Iteration {self._iteration}: {self._what} of the teacher are NaN or infinite. '
                'Samples with such values count with weight 0 in the loss of distillation, so the '
                'student learns nothing from them; this is logged once. Check the teacher: its '
                'weights, model.teacher.precision and the normalisation of its images.',
                logger='current',
                level=logging.WARNING,
            )
        if not student_ok:
            print_log(
                f'Iteration {self._iteration}: {self._what} of the student are NaN or infinite, '
                'and so is its loss, as that of the plain detector would be; this is logged once. '
                'Lower the learning rate, clip gradients, or train in float32.',
                logger='current',
                level=logging.WARNING,
            )


def _all_finite(values: Tensor) -> Tensor:
    """Return whether all values are finite, a bool scalar, without a tensor of their size."""
    if values.numel() == 0:
        return torch.ones((), dtype=torch.bool, device=values.device)
    values = values.detach()
    if values.dtype == torch.float16 and not values.is_cuda:
        values = values.float()  # torch 2.1 has no aminmax of float16 there
    # Minimum and maximum are NaN where any value is NaN.
    return torch.stack(torch.aminmax(values)).isfinite().all()
