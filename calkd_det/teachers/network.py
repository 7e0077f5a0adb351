"""The network of a teacher: a frozen detector that predicts for the samples of a student."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn

from calkd_det.calibration import Calibrator
from calkd_det.knowledge import HeadSamples, Knowledge
from calkd_det.taps import KnowledgeTaps
from calkd_det.teachers.folding import fold_batchnorm

PRECISIONS = {
    'float32': torch.float32,
    'bfloat16': torch.bfloat16,
    'float16': torch.float16,
}


class TeacherNetwork(nn.Module):
    """A frozen detector that predicts what another detector predicted.

    Args:
        detector: The teacher's detector, its weights loaded, prepared by :func:`prepare_detector`.
        taps: Read it.
        calibrator: Applied to its class logits.
        input_map: From the student's normalised images to the teacher's.
        class_map: From the teacher's classes to the student's; None where they are the same.
        classifiers: By the name of each of the student's classifiers that of the teacher's which
            answers for it; None for the same names.
        precision: A key of ``PRECISIONS`` that the network computes in; None for that of the
            autocast around it.
    """

    def __init__(
        self,
        detector: nn.Module,
        taps: KnowledgeTaps,
        calibrator: Calibrator,
        input_map: nn.Module,
        class_map: nn.Module | None,
        precision: str | None = None,
        classifiers: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.detector = detector
        self.taps = taps
        self.calibrator = calibrator
        self.input_map = input_map
        self.class_map = class_map
        self.precision = precision
        self.classifiers = classifiers or {}
        self.eval().requires_grad_(False)

    def is_on(self, device: torch.device) -> bool:
        """Whether all of it is on a device; another holder may have moved a shared detector."""
        tensors = (next(self.detector.parameters()), self.input_map.scale)
        return all(tensor.device == device for tensor in tensors)

    @torch.no_grad()
    def extract_feat(
        self, images: Tensor, image_shapes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, ...]:
        """Compute what all of the teacher's answers share, from the student's images.

        Args:
            images: The student's normalised batch, shape (B, 3, H, W), of any float dtype.
            image_shapes: Height and width in pixels of each image, without its padding.

        Returns:
            The features that :meth:`forward` takes, each of shape (B, D, h, w).
        """
        dtype = next(self.detector.parameters()).dtype
        with self._autocast(images.device.type):
            feats = self.detector.extract_feat(self.input_map(images.to(dtype), image_shapes))
            return self.taps.prepare(self.detector, feats)

    @torch.no_grad()
    def forward(self, feats: tuple[Tensor, ...], knowledge: Sequence[Knowledge]) -> list[Any]:
        """Predict for the samples of the student what the student predicted.

        Args:
            feats: Those of :meth:`extract_feat`, of the batch that the knowledge is of.
            knowledge: What the student computed.

        Returns:
            For each piece of knowledge the teacher's answer. Class logits are calibrated and over
            the student's classes, float32, of the shape of the student's.
        """
        columns = None if self.class_map is None else self.class_map.label_columns
        for_teacher = [
            piece.for_teacher(self.classifiers.get(piece.name, piece.name), columns)
            for piece in knowledge
        ]
        with self._autocast(feats[0].device.type):
            answers = self.taps.answers(self.detector, feats, for_teacher)
            return [
                piece.calibrate(answer, self.calibrate) for piece, answer in zip(knowledge, answers)
            ]

    def taught(self, knowledge: Sequence[Knowledge]) -> list[Knowledge]:
        """Return the pieces of the student's knowledge that a classifier of the teacher teaches."""
        return [
            piece
            for piece in knowledge
            if not isinstance(piece, HeadSamples)
            or not self.classifiers
            or piece.name in self.classifiers
        ]

    def calibrate(self, logits: Tensor) -> Tensor:
        """Calibrate logits over the teacher's classes, and map them to the student's."""
        logits = self.calibrator(logits)
        return logits if self.class_map is None else self.class_map(logits)

    def _autocast(self, device_type: str) -> AbstractContextManager:
        if self.precision is None:
            return nullcontext()
        if self.precision == 'float32':
            return torch.autocast(device_type, enabled=False)
        return torch.autocast(device_type, PRECISIONS[self.precision])


def prepare_detector(detector: nn.Module, taps: KnowledgeTaps) -> nn.Module:
    """Freeze a detector with its weights, and keep what its taps need of it.

    Args:
        detector: On the CPU. It is changed in place.
        taps: Read it.

    Returns:
        The detector in eval mode, without gradients, its BatchNorm folded where that changes
        nothing.
    """
    detector = revert_sync_batchnorm(detector).eval()
    taps.keep(detector)
    return fold_batchnorm(detector).eval().requires_grad_(False)
