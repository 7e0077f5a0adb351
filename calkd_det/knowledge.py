"""Knowledge that a student and its teacher are compared on.

A tap records what the student's parts compute in a step, asks the teacher the same, and a loss
compares the two. Each piece of knowledge is a plain object with the student's values, what the tap
needs to ask a teacher the same question, labels and weights.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

Activation = Literal['softmax', 'sigmoid']
# What a loss compares: class logits, boxes, or feature maps.
Kind = Literal['class', 'box', 'features']
KINDS: tuple[Kind, ...] = ('class', 'box', 'features')


def kind_of(loss: nn.Module) -> Kind:
    """Return what a loss compares.

    A user's own loss need not be a :class:`~calkd_det.losses.DistillationLoss`. Without a ``kind``
    it compares class logits.
    """
    return getattr(loss, 'kind', 'class')


@dataclass(frozen=True)
class KnowledgeSizes:
    """Sizes of what a student and its teacher are compared on, each a pair of theirs.

    Attributes:
        feature_widths: The numbers of channels of each level of the feature maps; None where
            features are not compared.
        box_bins: The number of bins of the distribution of each side of a box, None for a head
            that predicts none; None where boxes are not compared.
    """

    feature_widths: tuple[Sequence[int], Sequence[int]] | None = None
    box_bins: tuple[int | None, int | None] | None = None


class Knowledge(ABC):
    """One piece of what the student computed, with its graph.

    Attributes:
        noun: What the values are, for a message.
        name: The name of the part that computed it, '' if the detector has only one.
        factor: The head's own factor on the loss of this part, which distillation uses as well.
    """

    noun: str
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

    def for_teacher(self, name: str, columns: Tensor | None) -> Knowledge:
        """Return this piece in the names and classes of the teacher.

        Args:
            name: The name of the teacher's part that answers.
            columns: For each student class and the background its index among the teacher's
                classes, int64, shape (C + 1,); None where they are the same.
        """
        return replace(self, name=name)

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
class BoxPredictions:
    """Boxes that a head predicts for M of its N samples.

    Attributes:
        rows: Index of each among the N samples, int64, shape (M,).
        boxes: Decoded boxes, float32, shape (M, 4), x1, y1, x2, y2 in pixels of the batched image.
            They are not clipped to the image.
        deltas: Of a RoI head, the values that its coder decodes into ``boxes``, float32, shape
            (M, 4). None of a dense head.
        coder: The kind and the numbers of the coder of ``deltas``. Deltas can be compared where
            these are equal. None where it is not known.
        distribution: Logits of R bins for each side of the box, float32, shape (M, 4, R). None
            where the head predicts none.
        centerness: Logits of centerness, float32, shape (M,). None where the head predicts none.
        normalised: Of a head of queries, centre x, centre y, width and height as shares of width
            and height of the image without its padding, float32, shape (M, 4). None of other
            heads.
    """

    rows: Tensor
    boxes: Tensor
    deltas: Tensor | None = None
    coder: tuple[Any, ...] | None = None
    distribution: Tensor | None = None
    centerness: Tensor | None = None
    normalised: Tensor | None = None

    def values(self) -> dict[str, Tensor]:
        """Return by name what the head predicts, each a float32 tensor with M rows."""
        columns = ('boxes', 'deltas', 'distribution', 'centerness', 'normalised')
        named = {name: getattr(self, name) for name in columns}
        return {name: value for name, value in named.items() if value is not None}

    def without_non_finite(self) -> tuple[BoxPredictions, Tensor]:
        """Put zeros in place of every sample with a NaN or infinite value.

        Returns:
            The predictions, and which samples are finite, bool, shape (M,).
        """
        finite = torch.ones_like(self.rows, dtype=torch.bool)
        for value in self.values().values():
            rows = value[:, None] if value.dim() == 1 else value.flatten(1)
            finite &= rows.isfinite().all(dim=1)
        zeroed = {
            name: value.where(finite.view(-1, *[1] * (value.dim() - 1)), 0)
            for name, value in self.values().items()
        }
        return replace(self, **zeroed), finite


@dataclass(frozen=True)
class HeadAnswer:
    """What a teacher says of the samples of a head.

    Attributes:
        logits: Class logits, float, shape (N, C + 1) or (N, C).
        boxes: What it predicts for the samples of the student's ``boxes``; None where these are
            not compared.
        answered: Which of the samples it has an answer for, bool, shape (N,); None for all. The
            others have any finite values and count with weight 0.
    """

    logits: Tensor
    boxes: BoxPredictions | None = None
    answered: Tensor | None = None


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
            on the CPU. Heads of queries: see :class:`~calkd_det.taps.query_samples.QuerySamples`.
        activation: How the head turns logits into scores.
        name: The name of the classifier, '' if the detector has only one.
        factor: The head's own factor on this classifier's loss, which distillation uses as well.
        avg_factor: The divisor of the head's classification loss, a number or a scalar tensor
            > 0, such as the number of foreground samples, the number of all samples or the sum of
            qualities. It is a mean over the processes of a distributed training where the head
            takes this mean. None where the head computes no such loss.
        boxes: Predicted boxes of the foreground samples with a weight above zero; None where they
            are not recorded.
        qualities: The target of the score of each sample's class where the head is trained to
            predict a quality, such as the IoU of the box: float, shape (N,), in [0, 1]. It counts
            for the foreground alone. None where the target is 1.
    """

    logits: Tensor
    labels: Tensor
    weights: Tensor
    locations: Any
    activation: Activation
    name: str = ''
    factor: float = 1.0
    avg_factor: Tensor | float | None = None
    boxes: BoxPredictions | None = None
    qualities: Tensor | None = None

    def __len__(self) -> int:
        return self.logits.shape[0]

    @property
    def noun(self) -> str:
        return 'class logits' if self.boxes is None else 'class logits or boxes'

    @property
    def kinds(self) -> frozenset[Kind]:
        return frozenset({'class'} if self.boxes is None else {'class', 'box'})

    @property
    def num_classes(self) -> int:
        """The number C of foreground classes, which is the label of the background."""
        return self.logits.shape[1] - (self.activation == 'softmax')

    def foreground(self) -> Tensor:
        """Return the index of each foreground sample with a weight above zero, int64, (M,)."""
        return ((self.labels < self.num_classes) & (self.weights > 0)).nonzero().squeeze(1)

    def select(self, rows: Tensor) -> HeadSamples:
        """Return some samples, without boxes; ``locations`` must have a row for each sample.

        Args:
            rows: Which samples, bool, shape (N,).
        """
        columns = ['logits', 'labels', 'weights', 'locations']
        columns += [] if self.qualities is None else ['qualities']
        selected = {name: getattr(self, name)[rows] for name in columns}
        return replace(self, boxes=None, **selected)

    def computed(self) -> Sequence[Tensor]:
        return _values(self)

    def answered(self, answer: HeadAnswer) -> Sequence[Tensor]:
        return _values(answer)

    def for_teacher(self, name: str, columns: Tensor | None) -> HeadSamples:
        labels = self.labels if columns is None else columns[self.labels]
        return replace(self, name=name, labels=labels)

    def calibrate(self, answer: HeadAnswer, calibrator: Callable[[Tensor], Tensor]) -> HeadAnswer:
        return replace(answer, logits=calibrator(answer.logits))

    def without_non_finite(self, answer: HeadAnswer) -> tuple[HeadSamples, HeadAnswer]:
        """See :meth:`Knowledge.without_non_finite`. The unit is a sample.

        Samples without an answer are left out as well.
        """
        finite = answer.logits.sum(dim=1).isfinite()
        logits = answer.logits.masked_fill_(~finite[:, None], 0)
        boxes = answer.boxes
        if boxes is not None:
            boxes, finite_boxes = boxes.without_non_finite()
            finite[boxes.rows] &= finite_boxes
        if answer.answered is not None:
            finite &= answer.answered
        return (
            replace(self, weights=self.weights * finite),
            replace(answer, logits=logits, boxes=boxes),
        )

    def compare(self, loss: nn.Module, answer: HeadAnswer) -> Tensor:
        """Call a loss of class logits, or of boxes.

        A loss of class logits is given ``avg_factor`` where its ``forward`` takes it. A user's own
        loss need not be a :class:`~calkd_det.losses.ClassLoss`, and may take four arguments only.
        """
        if kind_of(loss) == 'box':
            return self._compare_boxes(loss, answer)
        inputs = (self.logits, answer.logits, self.labels, self.weights)
        if 'avg_factor' in inspect.signature(loss.forward).parameters:
            return loss(*inputs, avg_factor=self.avg_factor)
        return loss(*inputs)

    def _compare_boxes(self, loss: nn.Module, answer: HeadAnswer) -> Tensor:
        rows = self.boxes.rows
        return loss(
            self.boxes,
            answer.boxes,
            self._scores(self.logits.detach()[rows]),
            self._scores(answer.logits[rows]),
            self.labels[rows],
            self.weights[rows],
        )

    def _scores(self, logits: Tensor) -> Tensor:
        """Return the scores of the C foreground classes, float32, shape (M, C)."""
        if self.activation == 'sigmoid':
            return logits.float().sigmoid()
        return logits.float().softmax(dim=1)[:, :-1]


def _values(head: HeadSamples | HeadAnswer) -> list[Tensor]:
    """Return the class logits and the predicted boxes."""
    return [head.logits, *(head.boxes.values().values() if head.boxes is not None else ())]


@dataclass(frozen=True)
class FeatureMaps(Knowledge):
    """Feature maps of the neck, or of the backbone where there is no neck.

    Attributes:
        maps: The maps of L levels, float, each of shape (B, D, h, w).
        batch_size: Height and width in pixels of the batched image.
        boxes: Boxes of the objects of each image, float, each of shape (G, 4), x1, y1, x2, y2 in
            pixels of the batched image.
        valid: Which places of each level count, bool, each of shape (B, 1, h, w). None where all
            do.
    """

    noun: ClassVar[str] = 'features'

    maps: tuple[Tensor, ...]
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
            tuple(maps.masked_fill_(~mask, 0) for maps, mask in zip(answer, finite)),
        )

    def compare(self, loss: nn.Module, answer: tuple[Tensor, ...]) -> Tensor:
        """Call a loss of feature maps."""
        height, width = self.batch_size
        # By numbers, not by a tensor of them, which a GPU would have to wait for.
        sides = [(box[:, 0::2] / width, box[:, 1::2] / height) for box in self.boxes]
        boxes = [torch.stack(pair, dim=2).flatten(1) for pair in sides]
        return loss(self.maps, answer, self.valid, boxes)
