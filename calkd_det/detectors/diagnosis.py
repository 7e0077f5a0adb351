"""Figures for the log on the teacher's predictions of the foreground."""

from __future__ import annotations

import torch
from torch import Tensor

from calkd_det.taps import Activation, HeadSamples

# mmdet's usual score_thr, below which a sigmoid detector reports no box.
NO_OBJECT_SCORE = 0.05


def predict(logits: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
    """Return scores and predicted classes, one of which is "no class".

    Under softmax "no class" is the background. A sigmoid head has no such column. It predicts "no
    class" where its highest score is below :data:`NO_OBJECT_SCORE`. Otherwise a head with scores
    near zero would be right by accident.

    Args:
        logits: Float, shape (N, C + 1) with the background last for ``softmax``, (N, C) for
            ``sigmoid``.
        activation: How the head turns logits into scores.

    Returns:
        The highest score, float, shape (N,), and the prediction, int64, shape (N,); C is "no
        class".
    """
    highest, prediction = logits.max(dim=1)
    if activation == 'softmax':
        return (highest - logits.logsumexp(dim=1)).exp(), prediction
    score = highest.sigmoid()
    return score, prediction.masked_fill(score < NO_OBJECT_SCORE, logits.shape[1])


@torch.no_grad()
def diagnose(samples: HeadSamples, teacher_logits: Tensor) -> dict[str, Tensor]:
    """Return the log's figures on the teacher. They stay on the device.

    All figures are of the foreground samples, those with an assigned class and a weight above
    zero. The background is left out, because it is far larger and easy to classify. Predictions
    are those of :func:`predict`. ``teacher_ece`` of
    :class:`~calkd_det.hooks.TeacherCalibrationHook` counts the same samples.

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
    counted = (samples.labels < samples.num_classes) & (samples.weights > 0)
    count = counted.sum().clamp(min=1)
    return {
        'teacher_confidence': confidence.masked_fill(~counted, 0).sum() / count,
        'teacher_accuracy': ((prediction == samples.labels) & counted).sum() / count,
        'teacher_agreement': ((prediction == student_prediction) & counted).sum() / count,
    }
