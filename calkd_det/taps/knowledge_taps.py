"""The taps that together read the kinds of knowledge that a detector is distilled by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from mmdet.structures import SampleList
from torch import Tensor, nn

from calkd_det.errors import ConfigError
from calkd_det.knowledge import FeatureMaps, HeadAnswer, Kind, Knowledge
from calkd_det.taps.base import BEFORE_HEADS, CLASS_AND_BOX, Tap, keep_children
from calkd_det.taps.feature_maps import FeatureMapTap, feature_source
from calkd_det.taps.refused import (
    describe_heads,
    reason_against_boxes,
    reason_against_features,
)
from calkd_det.taps.registry import find_tap
from calkd_det.taps.self_test import check_answers

Answer = HeadAnswer | tuple[Tensor, ...]


class KnowledgeTaps:
    """The taps for some kinds of knowledge of one detector; each is used as one tap.

    Args:
        kinds: What losses compare.
        head: The tap of the detector's head; None where losses compare features alone.

    Attributes:
        features: The tap of the feature maps; None where no loss compares them.
    """

    def __init__(self, kinds: frozenset[Kind], head: Tap | None) -> None:
        self.kinds = kinds
        self.head = head
        self.features = FeatureMapTap() if 'features' in kinds else None

    @contextmanager
    def record(self, detector: nn.Module, data_samples: SampleList) -> Iterator[list[Knowledge]]:
        """Record the knowledge of a detector while it computes its loss.

        Args:
            detector: The student.
            data_samples: Annotations and meta information of each image of the batch.

        Returns:
            A context manager that gives a list. The list is empty inside the block. After the
            block it holds what was recorded, and the detector has no hook left.
        """
        knowledge: list[Knowledge] = []
        with ExitStack() as stack:
            parts = [
                stack.enter_context(tap.record(detector, self.kinds, data_samples))
                for tap in (self.head, self.features)
                if tap is not None
            ]
            yield knowledge
        knowledge.extend(piece for part in parts for piece in part)

    def keep(self, detector: nn.Module) -> None:
        """Remove, in place, every part of a frozen detector that :meth:`answer` does not run."""
        if self.head is None:
            keep_children(detector, BEFORE_HEADS)
        else:
            self.head.keep(detector, self.kinds)

    def prepare(self, detector: nn.Module, feats: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Add to a frozen detector's features what all its answers share."""
        return feats if self.head is None else self.head.prepare(detector, feats)

    def answers(
        self, detector: nn.Module, feats: tuple[Tensor, ...], knowledge: Sequence[Knowledge]
    ) -> list[Answer]:
        """Predict for the samples of the student what the student predicted.

        Args:
            detector: The teacher, after :meth:`keep`.
            feats: Its features of the same batch, from :meth:`prepare`.
            knowledge: The student's.

        Returns:
            The answer to each piece of it.
        """
        of_head = [piece for piece in knowledge if not isinstance(piece, FeatureMaps)]
        answers_of_head = iter(self.head.answers(detector, feats, of_head) if of_head else ())
        return [
            self.features.answer(detector, feats, piece)
            if isinstance(piece, FeatureMaps)
            else next(answers_of_head)
            for piece in knowledge
        ]


def find_taps(detector: nn.Module, kinds: frozenset[Kind], key: str) -> KnowledgeTaps:
    """Return the taps that read some kinds of knowledge of a detector.

    Args:
        detector: Any mmdet detector.
        kinds: What losses compare.
        key: How an error message names the detector, e.g. ``model``.

    Raises:
        ConfigError: The detector's head cannot be read, see
            :func:`~calkd_det.taps.registry.find_tap`, or its boxes or feature maps cannot.
    """
    if 'features' in kinds:
        feature_source(detector)
        reason = reason_against_features(detector)
        if reason is not None:
            raise ConfigError(
                f'{key}: CalKD-Det cannot compare the feature maps of a {type(detector).__name__} '
                f'with {type(detector.backbone).__name__}: {reason}'
            )
    if not kinds & CLASS_AND_BOX:
        return KnowledgeTaps(kinds, None)
    head = find_tap(detector, key)
    if 'box' in kinds:
        if 'box' not in head.kinds(detector):
            raise ConfigError(
                f'{key}: CalKD-Det reads the class logits of a {type(detector).__name__} with '
                f'{describe_heads(detector)}, but not its boxes: {reason_against_boxes(detector)}. '
                'Leave the losses of boxes out of model.distillation'
            )
        if not head.is_tried(detector):
            check_answers(head, detector, key, CLASS_AND_BOX)
    return KnowledgeTaps(kinds, head)
