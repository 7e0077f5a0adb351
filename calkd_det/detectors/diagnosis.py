"""Tell in the log what the teacher says of the objects."""

from __future__ import annotations

import torch
from torch import Tensor

from calkd_det.taps import Activation, ClassifierSamples

# Below mmdet's usual score_thr a sigmoid detector reports no box.
NO_OBJECT_SCORE = 0.05


def predict(logits: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
    """Return scores and predicted classes, "no class" among them.

    Under softmax "no class" is the background, where its probability is the highest. A sigmoid
    head has no such column: it predicts no class where its highest score is below
    :data:`NO_OBJECT_SCORE`. Else one that scores nothing would be right by accident.

    Args:
        logits: Float, shape (N, C + 1) with the background last for ``softmax``, (N, C) for
            ``sigmoid``.
        activation: How the head turns logits into scores.

    Returns:
        The highest score, float, shape (N,), and the prediction, int64, shape (N,); C is no class.
    """
    highest, prediction = logits.max(dim=1)
    if activation == 'softmax':
        return (highest - logits.logsumexp(dim=1)).exp(), prediction
    score = highest.sigmoid()
    return score, prediction.masked_fill(score < NO_OBJECT_SCORE, logits.shape[1])


def num_classes(samples: ClassifierSamples) -> int:
    """Return C, the label of the background."""
    return samples.logits.shape[1] - (samples.activation == 'softmax')


@torch.no_grad()
def diagnose(samples: ClassifierSamples, teacher_logits: Tensor) -> dict[str, Tensor]:
    """Return what the log tells of the teacher; no value leaves the device here.

    All figures are of the foreground samples, those with an assigned class and a weight above
    zero: the background outnumbers them, and is easy. See :func:`predict` for what a prediction is.

    Args:
        samples: N samples of the student.
        teacher_logits: Calibrated, over the student's classes, of the shape of the student's.

    Returns:
        Scalars in [0, 1], zero where there is no foreground: the teacher's mean highest score, the
        share of samples that it predicts as the assigned class, and the share on which teacher
        and student predict the same.
    """
    confidence, prediction = predict(teacher_logits, samples.activation)
    _, student_prediction = predict(samples.logits, samples.activation)
    counted = (samples.labels < num_classes(samples)) & (samples.weights > 0)
    count = counted.sum().clamp(min=1)
    return {
        'teacher_confidence': confidence.masked_fill(~counted, 0).sum() / count,
        'teacher_accuracy': ((prediction == samples.labels) & counted).sum() / count,
        'teacher_agreement': ((prediction == student_prediction) & counted).sum() / count,
    }
