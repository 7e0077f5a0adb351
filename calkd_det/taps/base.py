"""What a tap is: how to read a head's classifier, and how to put the same question to another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

from mmdet.structures import SampleList
from torch import Tensor, nn

from calkd_det.taps.geometry import Geometry
from calkd_det.taps.samples import Activation, ClassifierSamples


class Tap(ABC):
    """Knows one family of heads, and no detector in particular: every method is given one.

    Attributes:
        head_names: The heads that it supports, for the sentence that refuses another.
        set_descriptions: What the samples are, by their name in :meth:`sample_sets`; for a report.
    """

    head_names: str
    set_descriptions: Mapping[str, str] = {}

    @abstractmethod
    def supports(self, detector: nn.Module) -> bool:
        """Whether the detector's head is of this family."""

    def is_tried(self, detector: nn.Module) -> bool:
        """Return whether the tests of the taps run on the detector's head.

        One that they do not run on is checked before it is believed, see :meth:`example`.
        """
        return False

    @abstractmethod
    def num_classes(self, detector: nn.Module) -> int:
        """The number of foreground classes C of the detector's classifier."""

    @abstractmethod
    def activation(self, detector: nn.Module) -> Activation:
        """How the detector's head turns class logits into scores."""

    def classifiers(self, detector: nn.Module) -> tuple[str, ...]:
        """The names of the detector's classifiers, in the order of :meth:`record`."""
        return ('',)

    @abstractmethod
    def geometry(self, detector: nn.Module) -> Geometry:
        """Return what the detector's classifiers classify."""

    @abstractmethod
    def record(self, detector: nn.Module) -> AbstractContextManager[list[ClassifierSamples]]:
        """Records what the classifier sees while the detector computes its loss.

        Returns:
            A context manager. It gives a list that is empty inside the block, and on leaving it
            holds one :class:`ClassifierSamples` for each classifier that ran. Nothing stays
            behind on the detector.
        """

    @abstractmethod
    def keep_classifier(self, detector: nn.Module) -> None:
        """Removes, in place, every part of a frozen detector that :meth:`classify` does not run."""

    def prepare(self, detector: nn.Module, feats: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Adds to a frozen detector's features what all its classifiers share.

        Args:
            detector: The detector that answers, after :meth:`keep_classifier`.
            feats: Its feature maps of the batch, each (B, D, H, W).

        Returns:
            The features that :meth:`classify` is given; floats of four dimensions, batch first.
        """
        return feats

    @abstractmethod
    def classify(
        self, detector: nn.Module, feats: tuple[Tensor, ...], samples: ClassifierSamples
    ) -> Tensor:
        """Class logits that a detector gives to another one's samples.

        Args:
            detector: The detector that answers.
            feats: Those of :meth:`prepare`, of the same batch.
            samples: Whose ``locations`` and ``name`` say what is asked.

        Returns:
            Logits, shape (N, C' + 1) or (N, C') with the C' classes of ``detector``.
        """

    @abstractmethod
    def example(
        self, detector: nn.Module
    ) -> tuple[tuple[Tensor, ...], Sequence[ClassifierSamples]]:
        """Compute the whole head's own class logits of random features.

        What :meth:`classify` answers is compared with them, for a head that no test runs on.

        Args:
            detector: One without backbone and neck, in eval mode, on the CPU.

        Returns:
            Features as those of the neck, each (B, D, H, W), and for each classifier its samples
            with the logits that the head gives them.
        """

    @abstractmethod
    def sample_sets(
        self, detector: nn.Module, images: Tensor, data_samples: SampleList, seeds: Sequence[int]
    ) -> dict[str, ClassifierSamples]:
        """The samples of a batch that a calibration looks at, without gradients.

        The state of torch's random number generator is left changed.

        Args:
            detector: Any detector that the tap supports, in eval mode.
            images: Its normalised batch, shape (B, 3, H, W).
            data_samples: Annotations and meta information of each image, boxes in pixels of the
                batched image.
            seeds: One for each image: what the head samples of an image depends on its seed
                alone, and not on the rest of the batch.

        Returns:
            Samples by name; the first column of their ``locations`` is the index of the image.
            ``distillation`` is what :meth:`record` gives, others are there for comparison.
        """
