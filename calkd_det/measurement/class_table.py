"""Calibration of each class of a detector, before and after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from calkd_det.calibration.choice import SCORE_THRESHOLDS
from calkd_det.calibration.scores import class_scores, row_chunks
from calkd_det.calibration.targets import is_object, target_probabilities
from calkd_det.measurement.collect import SampleStore
from calkd_det.measurement.fewer_classes import student_labels

NUM_BINS = 15
# Lower scores are of boxes that mmdet's detectors do not report.
LOWEST_SCORE = SCORE_THRESHOLDS[0]


@dataclass(frozen=True)
class ClassErrors:
    """Errors of the scores of one class.

    Attributes:
        ece: Class-wise ECE of all samples, :data:`NUM_BINS` equal-width bins.
        reported: Total weight of the samples whose score is at least :data:`LOWEST_SCORE`.
        score_gap: Of these, the mean score minus the share right; None where there are none.
    """

    ece: float
    reported: float
    score_gap: float | None


@dataclass(frozen=True)
class ClassCalibration:
    """Calibration of one class.

    Attributes:
        num_objects: Number of samples that are labelled as it.
        before: Errors at T = 1.
        after: Errors at the fitted T.
    """

    num_objects: int
    before: ClassErrors
    after: ClassErrors


def class_calibration(store: SampleStore, temperature: float) -> tuple[ClassCalibration, ...]:
    """Measure each class that the data label at T = 1 and at a temperature.

    Args:
        store: At least one sample.
        temperature: T, > 0.
    """
    measured = [_measure(store, value) for value in (1.0, temperature)]
    counts = _num_objects(store)
    return tuple(ClassCalibration(count, *errors) for count, *errors in zip(counts, *measured))


def classes_to_json(
    classes: Sequence[ClassCalibration], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the entries of the calibration file."""
    return [{'class': name, **asdict(found)} for name, found in zip(names, classes)]


def class_table(classes: Sequence[ClassCalibration], names: Sequence[str]) -> str:
    """Return the table of the classes as Markdown, with what its columns mean."""
    explanation = (
        f'A gap is the mean score of the class minus the share right, in points, of the samples '
        f'whose score of the class is at least {LOWEST_SCORE:g}: above 0 its scores are too high. '
        f'The ECE is class-wise, of all samples, with {NUM_BINS} equal-width bins. Both are at '
        'T = 1 and at the fitted T. Few objects make both uncertain.'
    )
    rows = [
        '| class | samples labelled as it | gap, T = 1 | gap, fitted T | ECE, T = 1 '
        '| ECE, fitted T |',
        '|---|---:|---:|---:|---:|---:|',
    ]
    for name, found in zip(names, classes):
        gaps = (
            '–' if errors.score_gap is None else f'{100 * errors.score_gap:+.1f}'
            for errors in (found.before, found.after)
        )
        eces = (f'{100 * errors.ece:.3f} %' for errors in (found.before, found.after))
        cell = name.replace('|', r'\|')
        rows.append(f'| {cell} | {found.num_objects:,} | {" | ".join([*gaps, *eces])} |')
    return explanation + '\n\n' + '\n'.join(rows)


def _measure(store: SampleStore, temperature: float) -> list[ClassErrors]:
    bins: Tensor | None = None
    reported: Tensor | float = 0.0
    for logits, labels, weights, _ in store.chunks():
        for rows in row_chunks(len(logits)):
            scores, right = _scores_and_targets(store, logits[rows], labels[rows], temperature)
            w = weights[rows].double().unsqueeze(1).expand_as(scores)
            parts = torch.stack([w, w * scores, w * right])
            reported = reported + (parts * (scores >= LOWEST_SCORE)).sum(dim=1)
            if bins is None:
                bins = parts.new_zeros(3, NUM_BINS * scores.shape[1])
            # Bins are (lower, upper], as those of calkd_det.calibration.reliability.
            edges = torch.arange(1, NUM_BINS, dtype=torch.float64) / NUM_BINS
            index = torch.bucketize(scores, edges) * scores.shape[1]
            index += torch.arange(scores.shape[1])
            bins.index_add_(1, index.flatten(), parts.flatten(1))
    weight, score, right = bins.view(3, NUM_BINS, -1)
    eces = (score - right).abs().sum(dim=0) / weight.sum(dim=0)
    return [
        ClassErrors(ece, held, None if math.isnan(gap) else gap)
        for ece, held, gap in zip(
            eces.tolist(),
            reported[0].tolist(),
            ((reported[1] - reported[2]) / reported[0]).tolist(),
        )
    ]


def _scores_and_targets(
    store: SampleStore, logits: Tensor, labels: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return scores and targets of the C labelled classes, float64, shape (N, C)."""
    scaled = logits.double() / temperature
    if store.merging_map is not None:
        columns = store.merging_map.columns
        scaled = store.merging_map(scaled)
        labels = student_labels(labels, columns, len(columns))
    num_classes = scaled.shape[1] - (store.activation == 'softmax')
    scores = class_scores(scaled, store.activation)[:, :num_classes].contiguous()
    return scores, target_probabilities(labels, scaled.shape[1])[:, :num_classes]


def _num_objects(store: SampleStore) -> list[int]:
    labels = store.labels
    num_classes = store.num_logits - (store.activation == 'softmax')
    counts = labels[is_object(labels, num_classes)].bincount(minlength=num_classes)
    if store.merging_map is not None:
        counts = counts[store.merging_map.columns]
    return counts.tolist()
