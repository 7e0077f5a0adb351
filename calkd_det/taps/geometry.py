"""Describe what a detector classifies, and check that a teacher can classify the same."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mmengine.logging import print_log

from calkd_det.errors import ConfigError

Kind = Literal['RoIs', 'locations', 'anchors', 'queries', 'queries with masks']
Pair = tuple[float, float]
Box = tuple[float, float, float, float]

# In pixels, for anchors that were computed in float32 from scales and ratios.
TOLERANCE = 0.01


@dataclass(frozen=True)
class Geometry:
    """What a detector's classifiers classify.

    Attributes:
        kind: ``'RoIs'``, which any detector with a RoI head can classify; ``'locations'``, one
            sample a cell of each feature map; ``'anchors'``, one sample an anchor box;
            ``'queries'``, which are matched to those of any detector with queries that predict
            boxes; ``'queries with masks'``, to those of any whose queries predict masks.
        question: What the logits say of a sample.
        strides: Width and height of a cell of each level, in pixels. Empty for RoIs and queries.
        points: x and y of the first location of each level, in pixels. Empty unless ``kind`` is
            ``'locations'``.
        anchors: For each level the anchor boxes of the first cell, x1, y1, x2, y2 in pixels.
            Empty unless ``kind`` is ``'anchors'``.
    """

    kind: Kind
    question: str = 'the class'
    strides: tuple[Pair, ...] = ()
    points: tuple[Pair, ...] = ()
    anchors: tuple[tuple[Box, ...], ...] = ()

    def can_answer(self, other: Geometry) -> bool:
        """Return whether both have as many samples of the same kind in the same cells.

        The points of locations may differ, see :meth:`has_points_of`. Anchors may not.
        """
        return (
            (self.kind, self.question) == (other.kind, other.question)
            and _close(self.strides, other.strides)
            and _close(self.anchors, other.anchors)
        )

    def has_points_of(self, other: Geometry) -> bool:
        """Return whether the locations of both lie at the same points of the image."""
        return _close(self.points, other.points)

    def __str__(self) -> str:
        """Describe for the user what is classified."""
        if self.kind in ('RoIs', 'queries', 'queries with masks'):
            return self.kind
        strides = ', '.join(format_size(*stride) for stride in self.strides)
        if self.kind == 'locations':
            return f'{self.question} of each location of strides {strides}, {self._offset()}'
        return f'{self.question} of anchor boxes at strides {strides} ({self._anchors()})'

    def _offset(self) -> str:
        """Describe where in a cell its location lies."""
        shares = [
            tuple(round(at / size, 3) for at, size in zip(point, stride))
            for point, stride in zip(self.points, self.strides)
        ]
        if len(set(shares)) > 1:
            first = ', '.join(f'({x:g}, {y:g})' for x, y in self.points)
            return f'the first of each at {first} pixels'
        (share,) = set(shares)
        named = {(0.0, 0.0): 'at the corner of the cell', (0.5, 0.5): 'at the centre of the cell'}
        return named.get(share, f'{format_size(*share)} strides from the corner of the cell')

    def _anchors(self) -> str:
        """Describe the boxes of the first level in pixels, and how other levels differ."""
        boxes = ', '.join(
            format_size(round(x2 - x1, 1), round(y2 - y1, 1)) for x1, y1, x2, y2 in self.anchors[0]
        )
        words = f'pixels at stride {format_size(*self.strides[0])}: {boxes}'
        widths = [boxes[0][2] - boxes[0][0] for boxes in self.anchors]
        scales = [round(width / stride[0], 3) for width, stride in zip(widths, self.strides)]
        if max(scales) - min(scales) >= 0.01:  # not in proportion to the stride
            words += f', first of a level {", ".join(f"{width:g}" for width in widths)} wide'
        x1, y1, x2, y2 = self.anchors[0][0]
        if not _close((x1 + x2, y1 + y2), (0.0, 0.0)):
            words += f', centred {format_size((x1 + x2) / 2, (y1 + y2) / 2)} pixels from the corner'
        return words


ROIS = Geometry('RoIs')
QUERIES = Geometry('queries')
MASK_QUERIES = Geometry('queries with masks')


def check_geometry(student: Geometry, teacher: Geometry, key: str) -> None:
    """Check that a teacher can answer for a student's samples, and warn where points differ.

    Args:
        student: What the student classifies.
        teacher: What the teacher classifies.
        key: The config key of the teacher.

    Raises:
        ConfigError: The samples of the two are not of the same kind, number or size.
    """
    if not teacher.can_answer(student):
        raise ConfigError(
            f'{key}: the student classifies {student}, the teacher {teacher}: it cannot be asked '
            "about the student's samples"
        )
    if not teacher.has_points_of(student):
        print_log(
            f'{key}: the student classifies {student}, the teacher {teacher}. The teacher '
            'answers with the same cell of its own maps, so its scores are those of points beside '
            "the student's. A teacher whose points are the student's teaches without that shift.",
            logger='current',
            level=logging.WARNING,
        )


def _close(ours: Sequence, theirs: Sequence) -> bool:
    """Compare nested tuples of numbers up to :data:`TOLERANCE`."""
    if len(ours) != len(theirs):
        return False
    return all(
        math.isclose(a, b, rel_tol=0, abs_tol=TOLERANCE) if isinstance(a, float) else _close(a, b)
        for a, b in zip(ours, theirs)
    )


def format_size(width: float, height: float) -> str:
    """Format a width and a height, as one number where they are equal."""
    return f'{width:g}' if width == height else f'{width:g}x{height:g}'
