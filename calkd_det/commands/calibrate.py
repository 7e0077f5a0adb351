"""Fit the calibrators of a detector on held-out images."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from mmdet.utils import register_all_modules
from mmengine.config import Config
from torch import nn

from calkd_det.errors import CalKDError
from calkd_det.measurement.analysis import METRICS, CalibrationResult, analyse
from calkd_det.measurement.calibration_report import config_lines
from calkd_det.measurement.collect import collect_samples
from calkd_det.measurement.comparison_text import recommendation_line
from calkd_det.measurement.held_out import (
    HeldOutData,
    overlap_warnings,
    read_held_out,
    sha256_of,
)
from calkd_det.measurement.measured_detector import build_measured_detector
from calkd_det.stack import installed_versions
from calkd_det.teachers.source import CHECKPOINT_KEY, CONFIG_KEY


def calibrate(
    cfg: Config,
    config: str,
    checkpoint: str,
    *,
    ann_file: Path,
    images: Path,
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
    try:
        measured = build_measured_detector(cfg, checkpoint, device)
        data = read_held_out(
            cfg,
            ann_file,
            images,
            num_classes=measured.num_classes,
            classes=measured.classes,
            max_images=max_images,
        )
        out.mkdir(parents=True, exist_ok=True)
        stores = collect_samples(
            measured.detector,
            data.dataset,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            folder=out,
            progress=True,
        )
        about = _describe(config, checkpoint, measured.detector, data, seed)
        return analyse(stores, about, overlap_warnings(cfg, data), seed=seed)
    except CalKDError as error:
        # Errors of a teacher name the keys of a student's config; here those are arguments.
        text = str(error).replace(CHECKPOINT_KEY, 'CHECKPOINT').replace(CONFIG_KEY, 'CONFIG')
        raise type(error)(text) from error


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
        *(f'warning: {sentence}' for sentence in report.warnings),
        '',
        'in the config of a student, under model.teacher, one of',
        *(f'    {line}' for line in config_lines(report, out)),
    ]
    return '\n'.join(lines)


def _describe(
    config: str, checkpoint: str, detector: nn.Module, data: HeldOutData, seed: int
) -> dict[str, Any]:
    path = Path(checkpoint)
    return {
        'teacher': {
            'config': config,
            'checkpoint': checkpoint,
            'checkpoint_sha256': sha256_of(path) if path.is_file() else None,
            'detector': type(detector).__name__,
            'classes': list(data.dataset.metainfo['classes']),
        },
        'data': {
            'annotation_file': str(data.ann_file),
            'annotation_file_sha256': data.sha256,
            'images': str(data.images),
            'num_images': len(data.dataset),
            'num_images_in_file': data.num_listed,
        },
        'seed': seed,
        'date': datetime.now(timezone.utc).isoformat(timespec='seconds'),
        'versions': installed_versions(),
    }
