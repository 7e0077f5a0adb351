"""Check whether the teacher sees the objects of the validation images, under the right names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from calkd_det.commands.doctor.finding import Finding
from calkd_det.detectors.diagnosis import predict
from calkd_det.detectors.judgement import (
    Judgement,
    describe_blind,
    describe_exchanged,
    judge,
    units_of,
)
from calkd_det.measurement.collect import SampleStore
from calkd_det.measurement.fewer_classes import student_labels
from calkd_det.teachers import TeacherNetwork

DO_NOT_DISTIL = 'Do not distil before that is clear'


def judge_samples(store: SampleStore, network: TeacherNetwork) -> Judgement:
    """Judge a teacher by its predictions on its own samples, image by image.

    Args:
        store: Uncalibrated logits and labels over the teacher's classes.
        network: The teacher with its calibrator and its class map to the student's classes.
    """
    labels, weights, groups = store.labels, store.weights, store.groups.numpy()
    device = next(network.parameters()).device
    predictions = []
    size = 1
    for logits, *_ in store.chunks():
        mapped = network.calibrate(logits.to(device))
        size = mapped.shape[1] + (store.activation == 'sigmoid')
        predictions.append(predict(mapped, store.activation)[1].cpu())
    columns = None if network.class_map is None else network.class_map.columns.cpu()
    labels = student_labels(labels, columns, size - 1)
    cells = (labels * size + torch.cat(predictions)).numpy() if predictions else np.zeros(0, int)
    units = np.zeros((2, size, size))
    for number, image in enumerate(np.unique(groups)):
        rows = groups == image
        counts = np.bincount(cells[rows], weights[rows].numpy(), size * size)
        units[number % 2] += units_of(counts.reshape(size, size))
    return judge(units)


def check_evidence(
    judgement: Judgement, class_names: Sequence[str] | None, num_images: int
) -> Iterator[Finding]:
    """Report the judgement of a teacher.

    Args:
        judgement: The result of :func:`judge_samples`.
        class_names: The student's class names, None if unknown.
        num_images: Number of images of the samples.
    """
    title = 'evidence'
    if judgement.exchanged:
        text = describe_exchanged(judgement, class_names)
        yield Finding('error', title, f'{text}. {DO_NOT_DISTIL}')
    elif judgement.blind:
        yield Finding('error', title, f'{describe_blind(judgement)}. {DO_NOT_DISTIL}')
    elif judgement.sees:
        text = f'it predicts {judgement.accuracy:.2f} of the foreground samples as their class'
        yield Finding('ok', title, text)
    else:
        text = (
            f'{num_images} images hold too few objects to tell whether the teacher sees them under '
            'the right names: look at more with --images'
        )
        yield Finding('warning', title, text)
