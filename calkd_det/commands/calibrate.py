"""Fit the calibrators of a detector on held-out images."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from mmdet.utils import register_all_modules
from mmengine.config import Config

from calkd_det.errors import ConfigError
from calkd_det.measurement.analysis import (
    DISTILLATION,
    METRICS,
    OWN_TRAINING,
    CalibrationResult,
    analyse,
)
from calkd_det.measurement.calibration_report import config_lines
from calkd_det.measurement.collect import collect_samples
from calkd_det.measurement.comparison_text import own_training_text, recommendation_line
from calkd_det.measurement.fewer_classes import labelled_classes, map_to_labelled
from calkd_det.measurement.held_out import (
    HeldOutData,
    overlap_warnings,
    read_held_out,
    test_classes,
)
from calkd_det.measurement.measured_detector import (
    MeasuredDetector,
    build_measured_detector,
    describe_source,
    errors_name_arguments,
)
from calkd_det.stack import installed_versions
from calkd_det.taps import find_tap
from calkd_det.teachers.class_map import ClassMap
from calkd_det.teachers.source import CONFIG_KEY


def calibrate(
    cfg: Config,
    config: str,
    checkpoint: str,
    *,
    ann_file: Path,
    images: Path,
    own_training: tuple[Path, Path] | None,
    out: Path,
    device: torch.device,
    batch_size: int,
    num_workers: int,
    max_images: int | None,
    seed: int,
) -> CalibrationResult:
    """Collect a detector's samples on held-out images and analyse their calibration.

    Args:
        cfg: The detector's config.
        config: What the user named it by.
        checkpoint: Path or URL of its weights.
        ann_file: COCO annotation file of the held-out images.
        images: Their folder.
        own_training: Annotation file and folder of images that the detector was trained on, to
            compare with; None for no comparison. As many are used as there are held-out ones.
        out: Where samples are kept on the way; it is made.
        device: Where the detector runs.
        batch_size: Number of images of a batch.
        num_workers: Number of processes that load images.
        max_images: Use only the first so many; None for all.
        seed: Of the sampling of RoIs and of the bootstrap.

    Raises:
        ConfigError: The data or the config are wrong. The message speaks of the arguments.
        TeacherError: The weights do not fit, or no T can be fitted.
    """
    register_all_modules(init_default_scope=True)
    with errors_name_arguments():
        measured = build_measured_detector(cfg, checkpoint, device)
        data, class_map = _open(cfg, measured, ann_file, images, max_images)
        own = None
        if own_training is not None:
            own, own_map = _open(cfg, measured, *own_training, len(data.dataset))
            if own.sha256 == data.sha256:
                raise ConfigError('--train-ann is the annotation file of the held-out images')
            if own.dataset.metainfo['classes'] != data.dataset.metainfo['classes']:
                raise ConfigError(
                    f"'{own.ann_file}' and '{data.ann_file}' do not have the same categories of "
                    "the detector's classes"
                )
        out.mkdir(parents=True, exist_ok=True)
        options = dict(
            batch_size=batch_size, num_workers=num_workers, seed=seed, folder=out, progress=True
        )
        stores = collect_samples(measured.detector, data.dataset, class_map=class_map, **options)
        if own is not None:
            found = collect_samples(measured.detector, own.dataset, class_map=own_map, **options)
            stores[OWN_TRAINING] = found[DISTILLATION]
            stores[OWN_TRAINING].description = (
                f"The same of {len(own.dataset):,} of the teacher's own training images, of "
                f"'{own.ann_file}'"
            )
        about = _describe(config, checkpoint, measured, data, seed)
        return analyse(stores, about, overlap_warnings(cfg, data), seed=seed)


def summary(report: CalibrationResult, out: Path) -> str:
    """Return what the terminal shows: T, the error before and after, and lines for a config."""
    result = report.sets['distillation']
    fit = result.fit
    interval = (
        '' if fit.interval is None else ', 95 % interval {:.3f} to {:.3f}'.format(*fit.interval)
    )
    before, after = result.before.values['ece'], result.after.values['ece']
    lines = [
        f'T = {fit.temperature:.3f}{interval}',
        f'{METRICS["ece"]}: {100 * before:.2f} % before, {100 * after:.2f} % after',
        f'{result.num_samples} samples, {result.num_foreground} of them objects, '
        f'of {report.about["data"]["num_images"]} images',
        *([] if report.comparison is None else [recommendation_line(report.comparison)]),
        *filter(None, [own_training_text(report)]),
        *(f'warning: {sentence}' for sentence in report.warnings),
        '',
        'in the config of a student, under model.teacher, one of',
        *(f'    {line}' for line in config_lines(report, out)),
    ]
    return '\n'.join(lines)


def _open(
    cfg: Config,
    measured: MeasuredDetector,
    ann_file: Path,
    images: Path,
    max_images: int | None,
) -> tuple[HeldOutData, ClassMap | None]:
    """Open images with the classes of the detector that they label, and the map to these."""
    classes = measured.classes or test_classes(cfg)
    labelled = classes and labelled_classes(ann_file, classes)
    class_map = None
    if labelled:
        activation = find_tap(measured.detector, CONFIG_KEY).activation(measured.detector)
        class_map = map_to_labelled(labelled, classes, measured.num_classes, activation)
    data = read_held_out(
        cfg,
        ann_file,
        images,
        num_classes=measured.num_classes if class_map is None else len(labelled),
        classes=labelled,
        max_images=max_images,
    )
    return data, class_map


def _describe(
    config: str, checkpoint: str, measured: MeasuredDetector, data: HeldOutData, seed: int
) -> dict[str, Any]:
    classes = list(data.dataset.metainfo['classes'])
    return {
        'teacher': {
            **describe_source(config, checkpoint),
            'detector': type(measured.detector).__name__,
            'classes': list(measured.classes or classes),
        },
        'data': {
            **data.describe(),
            'num_images_in_file': data.num_listed,
            'classes': classes,
        },
        'seed': seed,
        'date': datetime.now(UTC).isoformat(timespec='seconds'),
        'versions': installed_versions(),
    }
