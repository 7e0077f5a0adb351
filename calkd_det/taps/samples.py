"""Samples of a classifier, which taps pass to losses and calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Activation = Literal['softmax', 'sigmoid']


@dataclass(frozen=True)
class ClassifierSamples:
    """N samples of one classifier of any kind of head.

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
