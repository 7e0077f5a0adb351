"""Measure a trained student's classifier on the images that it is judged by.

``python -m calkd_det.measurement.student_classifier CONFIG CHECKPOINT --out FILE`` does it in a
process of its own.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from mmdet.models.task_modules import ATSSAssigner, MaxIoUAssigner
from mmdet.structures.bbox import bbox2roi
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from calkd_det.knowledge import HeadSamples
from calkd_det.measurement.analysis import DISTILLATION, measure
from calkd_det.measurement.collect import SampleStore, collect_samples
from calkd_det.measurement.held_out import annotation_file, read_held_out
from calkd_det.measurement.measured_detector import build_measured_detector
from calkd_det.measurement.process import measure_in_process
from calkd_det.taps import find_tap

OBJECTS = 'objects'
BATCH_SIZE = 8
# What is kept of the errors at T = 1, by its name in a row.
FIGURES = {'accuracy': 'mean_accuracy', 'nll': 'nll', 'brier': 'brier', 'ece': 'ece'}


def measure_student(
    cfg: Config, checkpoint: str, *, max_images: int | None = None, device: str = 'cpu'
) -> dict[str, Any]:
    """Measure a student's class scores, without any calibrator, on its validation images.

    Args:
        cfg: The student's config.
        checkpoint: Path of its weights.
        max_images: Use only the first so many; None for all.
        device: Where it runs.

    Returns:
        Plain data: ``images``, their number; ``objects`` and ``distillation``, each with
        ``samples``, their number, ``accuracy``, ``nll``, ``brier`` and ``ece``, or None where
        there are no such samples. ``objects`` are those of :func:`collect_objects`;
        ``distillation`` are the samples that the student would be distilled on.

    Raises:
        ConfigError: The data cannot be read.
        TeacherError: The weights do not fit, or a class logit is not finite.
    """
    measured = build_measured_detector(cfg, checkpoint, device)
    data = read_held_out(
        cfg,
        *annotation_file(cfg, 'val'),
        num_classes=measured.num_classes,
        classes=measured.classes,
        max_images=max_images,
    )
    sampled = collect_samples(measured.detector, data.dataset, batch_size=BATCH_SIZE)[DISTILLATION]
    objects = collect_objects(measured.detector, data.dataset, sampled)
    return {
        'images': len(data.dataset),
        OBJECTS: _figures(objects),
        DISTILLATION: _figures(sampled),
    }


def collect_objects(
    detector: nn.Module, dataset: Dataset, sampled: SampleStore
) -> SampleStore | None:
    """Collect samples of the objects that are the same for every student of one configuration.

    For a RoI head these are the ground-truth boxes, classified by the last stage. For a dense head
    these are the foreground of its assigner, where that looks at boxes alone; of a head that is
    trained to predict a quality too, by the classes of the objects.

    Args:
        detector: A detector that a tap supports, in eval mode.
        dataset: Annotated images of :func:`~calkd_det.measurement.held_out.read_held_out`.
        sampled: Its samples of distillation on these images.

    Returns:
        The samples; None for a head that assigns objects by what it predicts.
    """
    tap = find_tap(detector, 'model')
    if tap.geometry(detector).kind == 'RoIs':
        return _classify_objects(detector, dataset)
    return _foreground(sampled) if has_fixed_foreground(detector) else None


def has_fixed_foreground(detector: nn.Module) -> bool:
    """Return whether a dense head's foreground follows from boxes, and not from its predictions."""
    head = detector.bbox_head
    assigner = getattr(head, 'cls_assigner', getattr(head, 'assigner', None))
    if assigner is None:
        # FCOS and its kin assign points by their own rule; a transformer always has an assigner.
        return hasattr(head, 'prior_generator')
    if isinstance(assigner, ATSSAssigner):
        return assigner.alpha is None
    return isinstance(assigner, MaxIoUAssigner)


@torch.no_grad()
def _classify_objects(detector: nn.Module, dataset: Dataset) -> SampleStore:
    tap = find_tap(detector, 'model')
    store = SampleStore()
    num_done = 0
    for batch in DataLoader(dataset, BATCH_SIZE, collate_fn=pseudo_collate):
        batch = detector.data_preprocessor(batch, training=False)
        objects = [sample.gt_instances for sample in batch['data_samples']]
        rois = bbox2roi([instances.bboxes for instances in objects])
        labels = torch.cat([instances.labels for instances in objects])
        if len(labels):
            feats = tap.prepare(detector, detector.extract_feat(batch['inputs']))
            asked = _unanswered(tap.classifiers(detector)[-1], rois, labels)
            logits = tap.answer(detector, feats, asked).logits
            samples = HeadSamples(
                logits, labels, torch.ones_like(rois[:, 0]), rois, tap.activation(detector)
            )
            store.append(samples, rois[:, 0].long() + num_done)
        num_done += len(objects)
    return store


def _unanswered(name: str, rois: Tensor, labels: Tensor) -> HeadSamples:
    """Return samples of a classifier without logits, as a tap is asked about them."""
    weights = torch.ones_like(rois[:, 0])
    return HeadSamples(rois.new_zeros(len(rois), 0), labels, weights, rois, 'softmax', name)


def _foreground(store: SampleStore) -> SampleStore:
    """Return the samples of objects with their classes, not with qualities of a student's boxes."""
    kept, num_done = SampleStore(), 0
    num_classes = store.num_logits - (store.activation == 'softmax')
    for logits, _, weights, groups in store.chunks():
        labels = store.labels[num_done : num_done + len(logits)]
        num_done += len(logits)
        chosen = labels < num_classes
        samples = HeadSamples(
            logits[chosen], labels[chosen], weights[chosen], groups[chosen], store.activation
        )
        kept.append(samples, groups[chosen])
    return kept


def _figures(store: SampleStore | None) -> dict[str, float] | None:
    if store is None or not len(store):
        return None
    values = measure(store, 1.0).values
    return {'samples': len(store), **{name: values[key] for name, key in FIGURES.items()}}


def main(argv: list[str] | None = None) -> int:
    """Measure the student that the arguments name and return the exit code."""
    return measure_in_process(measure_student, (), argv)


if __name__ == '__main__':
    sys.exit(main())
