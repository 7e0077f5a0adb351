"""Knowledge that a student and its teacher are compared on.

A tap records what the student's parts compute in a step, asks the teacher the same, and a loss
compares the two. Each piece of knowledge is a plain object with the student's values, what the tap
needs to ask a teacher the same question, labels and weights.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Callable, ClassVar, Literal

import torch
from torch import Tensor, nn

Activation = Literal['softmax', 'sigmoid']
# What a loss compares: class logits, boxes, or feature maps.
Kind = Literal['class', 'box', 'features']
KINDS: tuple[Kind, ...] = ('class', 'box', 'features')


class Knowledge(ABC):
    """One piece of what the student computed, with its graph.

    Attributes:
        noun: What the values are, for a message.
        name: The name of the part that computed it, '' if the detector has only one.
        factor: The head's own factor on the loss of this part, which distillation uses as well.
    """

    noun: ClassVar[str]
    name: str
    factor: float

    @property
    @abstractmethod
    def kinds(self) -> frozenset[Kind]:
        """The kinds of losses that this piece can be compared by."""

    @abstractmethod
    def computed(self) -> Sequence[Tensor]:
        """Return all values that the student computed."""

    @abstractmethod
    def answered(self, answer: Any) -> Sequence[Tensor]:
        """Return all values of the teacher's answer."""

    @abstractmethod
    def calibrate(self, answer: Any, calibrator: Callable[[Tensor], Tensor]) -> Any:
        """Calibrate the class logits of an answer, and map them to the student's classes.

        Args:
            answer: What a tap answered.
            calibrator: From logits over the teacher's classes to calibrated ones over the
                student's.

        Returns:
            The answer. Other kinds of knowledge than class logits are unchanged.
        """

    @abstractmethod
    def without_non_finite(self, answer: Any) -> tuple[Knowledge, Any]:
        """Leave out the values for which the teacher has a NaN or infinite value.

        Nothing is copied to the host. No value changes where all are finite.

        Args:
            answer: What the teacher answered. It may be changed in place.

        Returns:
            This piece, in which such values count with weight 0, and the answer with zeros there,
            because NaN times zero is NaN.
        """

    @abstractmethod
    def compare(self, loss: nn.Module, answer: Any) -> Tensor:
        """Call a loss whose kind is one of :attr:`kinds`.

        Args:
            loss: A distillation loss.
            answer: What the teacher answered.

        Returns:
            The loss, a scalar, before :attr:`factor`.
        """


@dataclass(frozen=True)
class HeadAnswer:
    """What a teacher says of the samples of a head.

    Attributes:
        logits: Class logits, float, shape (N, C + 1) or (N, C).
    """

    logits: Tensor


@dataclass(frozen=True)
class HeadSamples(Knowledge):
    """N samples of one head of any kind: RoIs, locations, anchors or queries.

    Attributes:
        logits: Class logits, float, shape (N, C + 1) with the background last for ``softmax``,
            (N, C) for ``sigmoid``. They carry the student's graph.
        labels: Assigned classes, int64, shape (N,); C is the background.
        weights: The head's own weight of each sample's label, float, shape (N,), >= 0.
        locations: Where the samples are, as the tap needs it to classify them with another
            detector. RoI heads: float, shape (N, 5), image index, x1, y1, x2, y2 in pixels of the
            batched image. Dense heads: int64, shape (L, 2), height and width of each level's map,
            on the CPU.
        activation: How the head turns logits into scores.
        name: The name of the classifier, '' if the detector has only one.
        factor: The head's own factor on this classifier's loss, which distillation uses as well.
        avg_factor: The divisor of the head's classification loss, a number or a scalar tensor
            > 0, such as the number of foreground samples, the number of all samples or the sum of
            qualities. It is a mean over the processes of a distributed training where the head
            takes this mean. None where the head computes no such loss.
    """

    noun = 'class logits'

    logits: Tensor
    labels: Tensor
    weights: Tensor
    locations: Tensor
    activation: Activation
    name: str = ''
    factor: float = 1.0
    avg_factor: Tensor | float | None = None

    def __len__(self) -> int:
        return self.logits.shape[0]

    @property
    def kinds(self) -> frozenset[Kind]:
        return frozenset({'class'})

    def computed(self) -> Sequence[Tensor]:
        return [self.logits]

    def answered(self, answer: HeadAnswer) -> Sequence[Tensor]:
        return [answer.logits]

    def calibrate(self, answer: HeadAnswer, calibrator: Callable[[Tensor], Tensor]) -> HeadAnswer:
        return replace(answer, logits=calibrator(answer.logits))

    def without_non_finite(self, answer: HeadAnswer) -> tuple[HeadSamples, HeadAnswer]:
        """See :meth:`Knowledge.without_non_finite`. The unit is a sample."""
        finite = answer.logits.sum(dim=1).isfinite()
        logits = answer.logits.masked_fill_(~finite[:, None], 0)
        return replace(self, weights=self.weights * finite), replace(answer, logits=logits)

    def compare(self, loss: nn.Module, answer: HeadAnswer) -> Tensor:
        """Call a loss of class logits, with ``avg_factor`` where its ``forward`` takes it.

        A user's own loss need not be a :class:`~calkd_det.losses.ClassLoss`, and may take four
        arguments only.
        """
        inputs = (self.logits, answer.logits, self.labels, self.weights)
        if 'avg_factor' in inspect.signature(loss.forward).parameters:
            return loss(*inputs, avg_factor=self.avg_factor)
        return loss(*inputs)


@dataclass(frozen=True)
class FeatureMaps(Knowledge):
    """Feature maps of the neck, or of the backbone where there is no neck.

    Attributes:
        maps: The maps of L levels, float, each of shape (B, D, h, w).
        image_sizes: Height and width in pixels of each of the B images, without its padding.
        batch_size: Height and width in pixels of the batched image.
        boxes: Boxes of the objects of each image, float, each of shape (G, 4), x1, y1, x2, y2 in
            pixels of the batched image.
        valid: Which places of each level count, bool, each of shape (B, 1, h, w). None where all
            do.
    """

    noun = 'features'

    maps: tuple[Tensor, ...]
    image_sizes: Sequence[tuple[int, int]]
    batch_size: tuple[int, int]
    boxes: Sequence[Tensor]
    valid: tuple[Tensor, ...] | None = None
    name: str = ''
    factor: float = 1.0

    @property
    def kinds(self) -> frozenset[Kind]:
        return frozenset({'features'})

    def computed(self) -> Sequence[Tensor]:
        return self.maps

    def answered(self, answer: tuple[Tensor, ...]) -> Sequence[Tensor]:
        return answer

    def calibrate(
        self, answer: tuple[Tensor, ...], calibrator: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, ...]:
        return answer

    def without_non_finite(
        self, answer: tuple[Tensor, ...]
    ) -> tuple[FeatureMaps, tuple[Tensor, ...]]:
        """See :meth:`Knowledge.without_non_finite`. The unit is a place of a level's map."""
        finite = [maps.sum(dim=1, keepdim=True).isfinite() for maps in answer]
        valid = self.valid or [torch.ones_like(mask) for mask in finite]
        return (
            replace(self, valid=tuple(a & b for a, b in zip(valid, finite))),
            tuple(maps.where(mask, 0) for maps, mask in zip(answer, finite)),
        )

    def compare(self, loss: nn.Module, answer: tuple[Tensor, ...]) -> Tensor:
        """Call a loss of feature maps."""
        height, width = self.batch_size
        boxes = [box / box.new_tensor([width, height, width, height]) for box in self.boxes]
        return loss(self.maps, answer, self.valid, boxes)
