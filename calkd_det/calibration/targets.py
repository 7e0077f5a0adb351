"""What a classifier's scores should have been: labels, or probabilities between 0 and 1.

Most heads are trained to labels. Some are trained to predict a quality, e.g. the IoU of the box, as
the score of the object's class. Their targets are probabilities.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def target_probabilities(labels: Tensor, num_classes: int) -> Tensor:
    """Return float64 targets (N, C) of labels (N,) in [0, C], or of targets (N, C)."""
    if labels.is_floating_point():
        return labels.double()
    return F.one_hot(labels, num_classes + 1)[:, :num_classes].double()


def quality_targets(labels: Tensor, qualities: Tensor, num_classes: int) -> Tensor:
    """Return the targets of a sigmoid head that is trained to predict a quality.

    Args:
        labels: int64, shape (N,), in [0, C].
        qualities: Float, shape (N,), the target of the class of each sample. Those of the
            background do not count.
        num_classes: C.

    Returns:
        float32, shape (N, C).
    """
    targets = torch.zeros(len(labels), num_classes + 1)
    targets[torch.arange(len(labels)), labels] = qualities.float().clamp(0, 1)
    return targets[:, :num_classes]


def is_object(labels: Tensor, num_classes: int) -> Tensor:
    """Return which samples are labelled as an object, bool, shape (N,).

    Args:
        labels: int64, shape (N,), in [0, C]; or target probabilities, shape (N, C) or (N, C + 1)
            with the background last. With those, a sample is an object if a class has a target
            above zero.
        num_classes: The number C of foreground classes.
    """
    if labels.is_floating_point():
        return (labels[:, :num_classes] > 0).any(dim=1)
    return labels < num_classes


def target_of(labels: Tensor, classes: Tensor) -> Tensor:
    """Return the target probability of one class of each sample, float64, shape (N,).

    Args:
        labels: int64, shape (N,); or target probabilities, shape (N, C).
        classes: int64, shape (N,), in [0, C).
    """
    if labels.is_floating_point():
        return labels.gather(1, classes.unsqueeze(1)).squeeze(1).double()
    return (labels == classes).double()
