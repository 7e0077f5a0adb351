"""Base class of taps, which read classifiers and run others on the same samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager

from mmdet.structures import SampleList
from torch import Tensor, nn

from calkd_det.knowledge import Activation, HeadAnswer, HeadSamples, Kind
from calkd_det.taps.geometry import Geometry

CLASS: frozenset[Kind] = frozenset({'class'})
CLASS_AND_BOX: frozenset[Kind] = frozenset({'class', 'box'})
# Children of every detector of mmdet that compute its features, before its heads.
BEFORE_HEADS = ('data_preprocessor', 'backbone', 'neck')


class Tap(ABC):
    """Base class of taps. A tap reads the classifiers of one family of heads.

    A tap holds no detector: every method is given one.

    Attributes:
        head_names: The supported heads, for the error message about another head.
        set_descriptions: Descriptions of the sets of :meth:`sample_sets` for a report, by name.
    """

    head_names: str
    set_descriptions: Mapping[str, str] = {}

    @abstractmethod
    def supports(self, detector: nn.Module) -> bool:
        """Return whether the detector's head is of this family."""

    def is_tried(self, detector: nn.Module) -> bool:
        """Return whether the tests of the taps run on the detector's head.

        Any other head is checked before it is used, see :meth:`example`.
        """
        return False

    @abstractmethod
    def num_classes(self, detector: nn.Module) -> int:
        """Return the number C of foreground classes of the detector's classifier."""

    @abstractmethod
    def activation(self, detector: nn.Module) -> Activation:
        """Return how the detector's head turns class logits into scores."""

    def classifiers(self, detector: nn.Module) -> tuple[str, ...]:
        """Return the names of the detector's classifiers, in the order of :meth:`record`."""
        return ('',)

    def taught_classifiers(self, detector: nn.Module) -> tuple[str, ...]:
        """Return those of :meth:`classifiers` that are distilled without ``teacher.stages``."""
        return self.classifiers(detector)

    def has_denoising(self, detector: nn.Module) -> bool:
        """Return whether the detector trains with denoising queries, which a teacher can share.

        :meth:`record` then records them under the name ``dn``.
        """
        return False

    @abstractmethod
    def geometry(self, detector: nn.Module) -> Geometry:
        """Return what the detector's classifiers classify."""

    def kinds(self, detector: nn.Module) -> frozenset[Kind]:
        """Return what the tap can read of the detector's head."""
        return CLASS

    def distribution_bins(self, detector: nn.Module) -> int | None:
        """Return the number of bins of the distribution predicted for each side of a box.

        None where the head predicts no distribution.
        """
        return None

    @abstractmethod
    def record(
        self,
        detector: nn.Module,
        kinds: frozenset[Kind] = CLASS,
        data_samples: SampleList = (),
    ) -> AbstractContextManager[list[HeadSamples]]:
        """Record the samples of each classifier while the detector computes its loss.

        Args:
            detector: A detector that the tap supports.
            kinds: What to record, some of :meth:`kinds`.
            data_samples: Annotations and meta information of each image of the batch.

        Returns:
            A context manager that gives a list. The list is empty inside the block. After the
            block it holds one :class:`HeadSamples` for each classifier that ran, and the
            detector has no hook of the tap left.
        """

    @abstractmethod
    def keep(self, detector: nn.Module, kinds: frozenset[Kind] = CLASS) -> None:
        """Remove, in place, every part of a frozen detector that :meth:`answer` does not run.

        Args:
            detector: A detector that the tap supports.
            kinds: What losses compare, some of :meth:`kinds`.
        """

    def prepare(self, detector: nn.Module, feats: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Add to a frozen detector's features what all its classifiers share.

        Args:
            detector: The teacher, after :meth:`keep`.
            feats: Its feature maps of the batch, each (B, D, H, W).

        Returns:
            The features for :meth:`answer`; floats of four dimensions, batch first.
        """
        return feats

    @abstractmethod
    def answer(
        self, detector: nn.Module, feats: tuple[Tensor, ...], samples: HeadSamples
    ) -> HeadAnswer:
        """Predict with a detector for the samples of another detector.

        Args:
            detector: The teacher.
            feats: Its features of the same batch, from :meth:`prepare`.
            samples: The samples of the other. Their ``locations`` and ``name`` are used. Where
                they have ``boxes``, the ``rows`` of these and their ``labels`` are used as well;
                labels are those of the C' classes of ``detector``.

        Returns:
            Logits, shape (N, C' + 1) or (N, C'), and boxes where the samples have boxes.
        """

    def answers(
        self, detector: nn.Module, feats: tuple[Tensor, ...], pieces: Sequence[HeadSamples]
    ) -> list[HeadAnswer]:
        """Predict with a detector for the samples of all classifiers of another.

        A tap whose classifiers share a forward of the detector overrides it, and runs that once.

        Args:
            detector: See :meth:`answer`, as for ``feats``.
            feats: Its features of the same batch.
            pieces: The samples of each classifier.

        Returns:
            The answer to each piece.
        """
        return [self.answer(detector, feats, samples) for samples in pieces]

    @abstractmethod
    def example(
        self, detector: nn.Module, kinds: frozenset[Kind] = CLASS
    ) -> tuple[tuple[Tensor, ...], Sequence[HeadSamples]]:
        """Compute class logits, and boxes if asked, of the whole head on random features.

        For a head that no test runs on, what :meth:`answer` gives is compared with them.

        Args:
            detector: A detector without backbone and neck, in eval mode, on the CPU.
            kinds: What to compute, some of :meth:`kinds`. A tap without boxes is called without
                this argument.

        Returns:
            Features like those of the neck, each (B, D, H, W), and for each classifier its samples
            with the logits, and the boxes of all of them, that the head computes. Negative
            coordinates of the boxes may be clipped to zero.
        """

    @abstractmethod
    def sample_sets(
        self, detector: nn.Module, images: Tensor, data_samples: SampleList, seeds: Sequence[int]
    ) -> dict[str, HeadSamples]:
        """Return the samples of a batch for a calibration, without gradients.

        The state of torch's random number generator changes.

        Args:
            detector: Any detector that the tap supports, in eval mode.
            images: Its normalised batch, shape (B, 3, H, W).
            data_samples: Annotations and meta information of each image, boxes in pixels of the
                batched image.
            seeds: One for each image. The samples of an image depend on its seed alone, and not
                on the rest of the batch.

        Returns:
            Samples by name; the first column of their ``locations`` is the index of the image.
            ``distillation`` holds the samples of :meth:`record`. Other sets are for comparison.
        """


def keep_children(module: nn.Module, names: Iterable[str]) -> None:
    """Remove, in place, every child of a module except those named."""
    for name, _ in list(module.named_children()):
        if name not in names:
            setattr(module, name, None)
