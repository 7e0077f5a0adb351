"""Check in the first steps whether a teacher is blind or has wrong class names."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from calkd_det.detectors.diagnosis import predict
from calkd_det.detectors.judgement import Judgement, describe_blind, describe_exchanged, judge
from calkd_det.detectors.runner_data import training_loader
from calkd_det.taps import HeadSamples

MIN_SAMPLES = 300
FIRST_LOOK = 16
MIN_STEPS = 32
# Enough for classes of COCO with one object in a thousand images.
MAX_STEPS = 4096


class TeacherEvidence:
    """Counts of the teacher's predictions in the first steps, and warnings drawn from them.

    The device counts in every step. The host judges the counts after 16, 32, 64, … steps, and for
    the last time at the end of the first epoch, but not before step 32 and not after step 4096.
    Later epochs show the same images, which are no new evidence. With fewer than 300 foreground
    samples nothing is judged. The host does not wait for the device: the counts are copied in
    the background and judged in a later step. A copy of this object, also a pickled one, begins
    anew. In a distributed training each process judges its own samples.
    """

    def __init__(self) -> None:
        self._step = 0
        self._last_step = MAX_STEPS
        # Units by half, assigned class and prediction, and the number of foreground samples.
        self._units: Tensor | None = None
        self._samples: Tensor | None = None
        self._copied_counts: tuple[int, Tensor, Tensor] | None = None
        self._copy_event: torch.cuda.Event | None = None
        self._warned_blind = False
        self._warned_exchanged: set[int] = set()

    def __reduce__(self) -> tuple:
        return TeacherEvidence, ()

    @torch.no_grad()
    def note(
        self, detector: nn.Module, samples_and_logits: Sequence[tuple[HeadSamples, Tensor]]
    ) -> None:
        """Count the predictions of a step, and warn if the counts copied before are suspicious.

        Args:
            detector: The student, which holds the names of its classes.
            samples_and_logits: The samples of each of the student's classifiers, with the teacher's
                calibrated logits.
        """
        self.report(detector)
        if self._step >= self._last_step or not samples_and_logits:
            return
        if self._step == 0:
            self._last_step = _last_step()
        counts = count_predictions(samples_and_logits)
        if self._units is None or self._units.device != counts.device:
            self._units = counts.new_zeros((2, *counts.shape))
            self._samples = counts.new_zeros(())
        self._units[self._step % 2] += counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
        self._samples += counts[:-1].sum()
        self._step += 1
        if self._step == self._last_step or (
            self._step >= FIRST_LOOK and self._step & (self._step - 1) == 0
        ):
            self._copy_counts()
            if not self._units.is_cuda:
                self.report(detector)

    def report(self, detector: nn.Module) -> None:
        """Judge the counts copied last, if they have arrived on the host, and warn."""
        if self._copied_counts is None or (
            self._copy_event is not None and not self._copy_event.query()
        ):
            return
        step, units, number = self._copied_counts
        self._copied_counts = self._copy_event = None
        if step == self._last_step:
            self._units = self._samples = None
        if number < MIN_SAMPLES:
            return
        judgement = judge(units.double().numpy())
        for text in self._warnings(judgement, detector, step == self._last_step):
            print_log(
                f'{text}. Judged by {int(number)} foreground samples of the first {step} steps; '
                'calkd doctor CONFIG looks closer.',
                logger='current',
                level=logging.WARNING,
            )

    def _copy_counts(self) -> None:
        units, samples = self._units, self._samples
        if units.is_cuda:
            units, samples = (each.to('cpu', non_blocking=True) for each in (units, samples))
            self._copy_event = torch.cuda.Event()
            self._copy_event.record()
        self._copied_counts = self._step, units, samples

    def _warnings(self, judgement: Judgement, detector: nn.Module, last: bool) -> list[str]:
        """Return the warnings that were not logged before.

        Exchanged classes are logged when first found, and once more at the last judgement where
        further ones were found by then, because rare classes appear late.
        """
        texts = []
        found = set(judgement.exchanged)
        if found and (not self._warned_exchanged or (last and found - self._warned_exchanged)):
            self._warned_exchanged |= found
            texts.append(describe_exchanged(judgement, detector._class_names()))
        if judgement.blind and not self._warned_blind:
            self._warned_blind = True
            texts.append(describe_blind(judgement))
        return texts


def count_predictions(samples_and_logits: Sequence[tuple[HeadSamples, Tensor]]) -> Tensor:
    """Count samples by assigned class and predicted class, all classifiers together.

    Samples of weight zero are left out.

    Args:
        samples_and_logits: One or more classifiers' samples over the same C classes, each with the
            teacher's calibrated logits.

    Returns:
        Float32, shape (C + 1, C + 1), on the device of the logits. The last row is the background,
        the last column "no class". The host does not wait for it.
    """
    size = samples_and_logits[0][0].num_classes + 1
    counts = samples_and_logits[0][1].new_zeros(size * size, dtype=torch.float32)
    for samples, logits in samples_and_logits:
        _, prediction = predict(logits, samples.activation)
        labels = samples.labels
        counted = (samples.weights > 0) & (labels >= 0) & (labels < size)
        cells = (labels * size + prediction).masked_fill(~counted, 0)
        counts.index_add_(0, cells, counted.float())
    return counts.view(size, size)


def _last_step() -> int:
    """Return the last step to count: that of the first epoch, where its length is known."""
    try:
        steps = len(training_loader())
    except TypeError:  # no Runner, or data without a length
        return MAX_STEPS
    return min(MAX_STEPS, max(MIN_STEPS, steps))
