"""Build the whole detector of a teacher, of which distillation keeps only a part."""

from __future__ import annotations

from dataclasses import dataclass

from mmengine.model import revert_sync_batchnorm
from torch import nn

from calkd_det.teachers.checkpoint import load_weights
from calkd_det.teachers.frozen_teacher import FrozenTeacher, build_detector
from calkd_det.teachers.source import TeacherSource, read_source


@dataclass(frozen=True)
class WholeTeacher:
    """The whole detector of a teacher, of which distillation keeps only a part.

    Attributes:
        detector: The detector, in eval mode, on the CPU.
        checkpoint: Path or URL of its weights.
        classes: Its class names, None if unknown.
    """

    detector: nn.Module
    checkpoint: str
    classes: tuple[str, ...] | None


def build_whole_teacher(teacher: FrozenTeacher) -> WholeTeacher:
    """Build the whole detector of a teacher that :meth:`FrozenTeacher.build` has built."""
    return build_from_source(read_source(teacher.config, teacher.checkpoint))


def build_from_source(source: TeacherSource) -> WholeTeacher:
    """Build a detector from its config, and load its weights.

    Raises:
        TeacherError: mmdet cannot build it, or the weights do not fit.
    """
    detector = revert_sync_batchnorm(build_detector(source)).eval()
    classes = load_weights(detector, source.checkpoint) or source.classes
    return WholeTeacher(detector, source.checkpoint, classes)
