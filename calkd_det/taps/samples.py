"""The one currency of taps, losses and calibration: what a classifier saw and was told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Activation = Literal['softmax', 'sigmoid']


@dataclass(frozen=True)
class ClassifierSamples:
    """N samples of one classifier, of any kind of head.

    Attributes:
        logits: Class logits, float, shape (N, C + 1) with the background last for ``softmax``,
            (N, C) for ``sigmoid``. They carry the student's graph.
        labels: Assigned classes, int64, shape (N,); C is the background.
        weights: The head's own weight of each sample's label, float, shape (N,), >= 0.
        locations: Where the samples came from, float, as the tap of the head family needs it
            to ask another detector about them; RoI heads: (N, 5), image index, x1, y1, x2, y2
            in pixels of the batched image; dense heads: (L, 2), height and width of each level's
            map, on the CPU.
        activation: How the head turns logits into scores.
        name: Which classifier of the detector, '' where there is but one.
        factor: The head's own factor on this classifier's loss; distillation takes it over.
        avg_factor: What the head divides the sum of its classification loss by, a number or a
            scalar tensor > 0: the number of foreground samples, of all samples, the sum of the
            qualities, or what else the head takes. Where the head averages it over the processes
            of a distributed training, so it is here. None where the head computes no such loss.
    """

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
