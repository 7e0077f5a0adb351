"""Measure a teacher's calibration on held-out images and on its own training images.

``python -m calkd_det.measurement.teacher_calibration CONFIG CHECKPOINT --out FILE`` does it in a
process of its own.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from calkd_det.calibration import Reliability, reliability
from calkd_det.calibration.scores import class_scores
from calkd_det.calibration.targets import is_object
from calkd_det.measurement.analysis import DISTILLATION, NUM_BINS, fit_set, measure
from calkd_det.measurement.collect import SampleStore, collect_samples
from calkd_det.measurement.held_out import annotation_file, read_held_out, train_subset
from calkd_det.measurement.measured_detector import build_measured_detector
from calkd_det.measurement.process import measure_in_process

# Where a row holds the teacher's errors, for whatever T a student is distilled with.
TEMPERATURES = (0.33, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
BATCH_SIZE = 8


def measure_teacher(
    cfg: Config,
    checkpoint: str,
    held_out: tuple[Path, Path],
    *,
    max_images: int | None = None,
    device: str = 'cpu',
) -> dict[str, Any]:
    """Measure the samples of distillation of two sets of images.

    Args:
        cfg: The teacher's config.
        checkpoint: Path or URL of its weights.
        held_out: Annotation file and image folder of images that it was not trained on.
        max_images: Use only the first so many; None for all held-out images, and as many of its
            own.
        device: Where it runs.

    Returns:
        ``held_out`` and ``training``, each as :func:`describe` gives it, plain data.

    Raises:
        ConfigError: The data cannot be read.
        TeacherError: The weights do not fit, or no T can be fitted.
    """
    measured = build_measured_detector(cfg, checkpoint, device)
    own = annotation_file(cfg, 'train')
    result = {}
    for name, (ann, images) in (('held_out', held_out), ('training', own)):
        data = read_held_out(
            cfg,
            ann,
            images,
            num_classes=measured.num_classes,
            classes=measured.classes,
            max_images=max_images,
        )
        if name == 'held_out':
            limit = min(len(data.dataset), train_subset(cfg) or len(data.dataset))
            max_images = min(limit, max_images or limit)
        store = collect_samples(measured.detector, data.dataset, batch_size=BATCH_SIZE)[
            DISTILLATION
        ]
        result[name] = {'images': len(data.dataset), **describe(store, measured.num_classes)}
    return result


def describe(store: SampleStore, num_classes: int) -> dict[str, Any]:
    """Describe samples by plain data.

    Args:
        store: Samples of a teacher.
        num_classes: Number of foreground classes.

    Returns:
        ``temperature`` fitted, with ``interval``; ``at``: errors by T, as texts, and ``fitted``;
        ``bins`` at T = 1 and at the fitted T; of the foreground alone its share, accuracy and
        ECE at T = 1.
    """
    result = fit_set(store, DISTILLATION)
    fit = result.fit
    at = {f'{value:g}': measure(store, value).values for value in TEMPERATURES}
    return {
        'temperature': fit.temperature,
        'interval': None if fit.interval is None else list(fit.interval),
        'at_bound': fit.at_bound,
        'samples': result.num_samples,
        'foreground_share': result.num_foreground / result.num_samples,
        'foreground': _foreground(store, num_classes),
        'at': {**at, 'fitted': result.after.values},
        'bins': {
            '1': bins_of(result.before.reliability),
            'fitted': bins_of(result.after.reliability),
        },
    }


def bins_of(bins: Reliability) -> dict[str, list]:
    """Return bins as plain data; None for what an empty bin does not have."""
    return {
        name: [None if math.isnan(value) else value for value in getattr(bins, name)]
        for name in Reliability.__dataclass_fields__
    }


def bins_from(content: dict[str, list]) -> Reliability:
    """Return the bins that :func:`bins_of` wrote."""
    return Reliability(
        **{
            name: tuple(math.nan if value is None else value for value in values)
            for name, values in content.items()
        }
    )


def _foreground(store: SampleStore, num_classes: int) -> dict[str, float] | None:
    probs, labels = [], []
    for logits, chunk_labels, _, _ in store.chunks():
        chosen = is_object(chunk_labels, num_classes)
        probs.append(class_scores(logits[chosen].double(), store.activation))
        labels.append(chunk_labels[chosen])
    if not sum(map(len, labels)):
        return None
    found = reliability(
        torch.cat(probs), torch.cat(labels), n_bins=NUM_BINS, activation=store.activation
    )
    return {'accuracy': found.mean_accuracy, 'ece': found.ece, 'confidence': found.mean_confidence}


def main(argv: list[str] | None = None) -> int:
    """Measure the teacher that the arguments name and return the exit code."""
    return measure_in_process(measure_teacher, ('ann', 'images'), argv)


if __name__ == '__main__':
    sys.exit(main())
