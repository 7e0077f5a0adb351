"""Check a teacher's quality on a few images: a rough look, not a measurement."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path

import torch
from mmdet.evaluation import CocoMetric
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from torch import Tensor, nn

from calkd_det.calibration import Calibrator, TemperatureScaling
from calkd_det.commands.doctor.evidence import DO_NOT_DISTIL
from calkd_det.commands.doctor.finding import CannotTell, Finding
from calkd_det.errors import TeacherError
from calkd_det.measurement.analysis import DISTILLATION, fit_set, format_temperature, measure
from calkd_det.measurement.collect import SampleStore, collect_samples
from calkd_det.measurement.fewer_classes import TeacherLabels
from calkd_det.measurement.held_out import (
    HeldOutData,
    is_coco_dataset,
    is_coco_file,
    leaf_datasets,
    read_held_out,
)

# A good teacher's mAP is far above the first value. A teacher with exchanged classes is below it,
# though not always at zero, while the AR of its boxes without classes is above the second value.
NEAR_ZERO_MAP = 0.05
FINDS_OBJECTS = 0.2
_UNKNOWN = "the teacher's mAP and calibration are not looked at"


def read_validation_images(
    cfg: Config, num_images: int, num_classes: int, classes: Sequence[str] | None
) -> HeldOutData:
    """Read the first images of the config's validation data, with the student's classes.

    Raises:
        CannotTell: The config has no such data, or they are not in COCO format.
        ConfigError: See :func:`~calkd_det.measurement.held_out.read_held_out`.
    """
    leaf = next(leaf_datasets((cfg.get('val_dataloader') or {}).get('dataset')), None)
    if leaf is None:
        raise CannotTell(f'the config has no val_dataloader, so {_UNKNOWN}')
    if not leaf.get('ann_file'):
        raise CannotTell(f'val_dataloader names no annotation file, so {_UNKNOWN}')
    root = Path(leaf.get('data_root') or '')
    ann_file = root / leaf['ann_file']
    if '://' in f'{leaf.get("data_root")}{leaf["ann_file"]}':
        raise CannotTell(f"'{leaf['ann_file']}' is not a file on this machine, so {_UNKNOWN}")
    if ann_file.exists() and not (is_coco_dataset(leaf) or is_coco_file(ann_file)):
        kind = getattr(leaf.get('type'), '__name__', leaf.get('type'))
        raise CannotTell(
            f"'{ann_file}' of val_dataloader, a {kind}, is not in COCO format, so {_UNKNOWN}"
        )
    data = read_held_out(
        cfg,
        ann_file,
        root / ((leaf.get('data_prefix') or {}).get('img') or ''),
        num_classes=num_classes,
        classes=classes,
    )
    if num_images < len(data.dataset):
        data.dataset.get_subset_(num_images)
    return data


def check_map(
    teacher: nn.Module, data: HeldOutData, columns: Tensor | None, sees: bool = False
) -> Iterator[Finding]:
    """Evaluate a teacher's boxes by mmdet's own metric.

    An mAP near zero is an error; only a warning where the teacher's class scores are right.

    Args:
        teacher: The whole detector, in eval mode.
        data: Images with the student's classes.
        columns: For each student class, its index among the teacher's; None where both have the
            same classes in the same order.
        sees: Whether the teacher's class scores on these images are known to be right.
    """
    value, recall = evaluate_boxes(teacher, data, columns)
    text = (
        f'{value:.3f} (COCO, bbox) on {len(data.dataset)} validation images: a look before the '
        'flight, not a measurement'
    )
    if value >= NEAR_ZERO_MAP:
        yield Finding('ok', 'teacher mAP', text)
        return
    if sees:
        why = (
            'Its class scores, which are what it teaches, are far better than chance on the same '
            'images, so boxes, thresholds or these few images are the reason'
        )
        yield Finding('warning', 'teacher mAP', f'near zero, {text}. {why}')
        return
    if recall >= FINDS_OBJECTS:
        why = (
            f'Its boxes find the objects (AR {recall:.3f} whatever the class), their classes are '
            'wrong: it was trained with its classes in another order than its checkpoint or config '
            'names them'
        )
    else:
        why = (
            f'Its boxes do not find the objects (AR {recall:.3f} whatever the class): a wrong or '
            'untrained file, a config with another normalisation than it was trained with, or '
            'images of another kind'
        )
    yield Finding('error', 'teacher mAP', f'NEAR ZERO, {text}. {why}. {DO_NOT_DISTIL}')


@torch.no_grad()
def evaluate_boxes(
    teacher: nn.Module, data: HeldOutData, columns: Tensor | None
) -> tuple[float, float]:
    """Return COCO's mAP of a teacher over the student's classes, and its AR@100 without classes.

    Both are means over IoU 0.50 to 0.95, in [0, 1], and 0 where there is no box at all.
    """
    ids = []
    with redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        metric = CocoMetric(ann_file=str(data.ann_file), metric=['bbox', 'proposal'])
        metric.dataset_meta = data.dataset.metainfo
        for sample in data.dataset:
            (found,) = teacher.test_step(pseudo_collate([sample]))
            ids.append(found.img_id)
            metric.process({}, [_relabel(found, columns).to_dict()])
        metric.img_ids = ids  # otherwise the objects of all other images count as missed
        results = metric.evaluate(len(ids))
    mean_average_precision, recall = (
        max(0.0, float(results.get(f'coco/{key}', 0.0))) for key in ('bbox_mAP', 'AR@100')
    )
    return mean_average_precision, recall


def _relabel(found: DetDataSample, columns: Tensor | None) -> DetDataSample:
    """Return the predictions of the student's classes, under the student's labels."""
    if columns is None:
        return found
    boxes = found.pred_instances
    matches = boxes.labels[:, None] == columns.to(boxes.labels.device)
    boxes.labels = matches.int().argmax(dim=1)
    found.pred_instances = boxes[matches.any(dim=1)]
    return found


def collect_validation_samples(
    teacher: nn.Module, data: HeldOutData, columns: Tensor | None
) -> SampleStore:
    """Collect the samples of a teacher's own training loss, labelled by its own classes.

    Args:
        teacher: As for :func:`check_map`.
        data: As for :func:`check_map`.
        columns: As for :func:`check_map`.

    Raises:
        TeacherError: A logit is not finite.
    """
    dataset = data.dataset if columns is None else TeacherLabels(data.dataset, columns)
    return collect_samples(teacher, dataset)[DISTILLATION]


def check_calibration(
    store: SampleStore, calibrator: Calibrator, data: HeldOutData
) -> Iterator[Finding]:
    """Measure a teacher's calibration.

    Args:
        store: The samples of :func:`collect_validation_samples`.
        calibrator: The calibrator of the config.
        data: The images of the samples.
    """
    try:
        result = fit_set(store, DISTILLATION)
    except TeacherError as error:  # the fitted T is only information
        yield Finding('warning', 'calibration', str(error))
        return
    text = f'ECE {100 * result.before.values["ece"]:.1f} % as it is'
    if isinstance(calibrator, TemperatureScaling) and calibrator.temperature != 1:
        ece = measure(store, calibrator.temperature).values['ece']
        text += f", {100 * ece:.1f} % with the config's T = {calibrator.temperature:.4g}"
    text += (
        f' (top-label, 15 bins, {result.num_samples} samples of {len(data.dataset)} images); of '
        f'least NLL on them is T = {format_temperature(result.fit)}. For information: fit T on '
        'held-out images with calkd calibrate; the best T for a student may be another'
    )
    yield Finding('ok', 'calibration', text)
