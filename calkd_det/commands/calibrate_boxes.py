"""Fit calibrators of a detector's final boxes on held-out images."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from pycocotools.coco import COCO
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from calkd_det.errors import ConfigError
from calkd_det.evaluation.box_calibration import (
    IOU_THRESHOLDS,
    BoxCalibration,
    FitTo,
    Method,
    fit_box_calibration,
    to_plain,
)
from calkd_det.evaluation.box_measurement import measure_boxes, plain_number
from calkd_det.evaluation.matching import ImageDetections, count_objects, match_detections
from calkd_det.evaluation.settings import resolve_settings
from calkd_det.measurement.held_out import (
    HeldOutData,
    find_overlaps,
    leaf_datasets,
    read_held_out,
)
from calkd_det.measurement.json_file import write_json
from calkd_det.measurement.measured_detector import (
    build_measured_detector,
    describe_source,
    errors_name_arguments,
)
from calkd_det.stack import installed_versions

NUM_FOLDS = 5
FILE_NAME = 'boxes.json'
_FIGURES = ('D-ECE', 'LaECE', 'LaACE', 'LRP')


@dataclass(frozen=True)
class BoxCalibrationResult:
    """Calibrators of final boxes, and what they are worth.

    Attributes:
        calibration: Fitted to all images.
        before: Figures of the boxes above the thresholds of raw scores. The thresholds of an image
            are chosen on other images.
        after: Figures of the boxes above both thresholds with calibrated scores. The calibrators
            and thresholds of an image are fitted to other images.
        about: Detector, data and versions.
        warnings: Sentences on the data.
    """

    calibration: BoxCalibration
    before: dict[str, float]
    after: dict[str, float]
    about: dict[str, Any]
    warnings: list[str]

    def to_plain(self) -> dict[str, Any]:
        """Return the content of the file."""
        return {
            **to_plain(self.calibration),
            'cross_fitted': {
                name: {key: plain_number(value) for key, value in figures.items()}
                for name, figures in (('before', self.before), ('after', self.after))
            },
            **self.about,
            'warnings': self.warnings,
        }


def calibrate_boxes(
    cfg: Config,
    config: str,
    checkpoint: str,
    *,
    ann_file: Path,
    images: Path,
    method: Method,
    fit_to: FitTo,
    device: torch.device,
    batch_size: int,
    num_workers: int,
    max_images: int | None,
    seed: int,
) -> BoxCalibrationResult:
    """Run a detector on held-out images and fit calibrators of its final boxes.

    Args:
        cfg: The detector's config.
        config: What the user named it by.
        checkpoint: Path or URL of its weights.
        ann_file: COCO annotation file of the held-out images.
        images: Their folder.
        method: The kind of the calibrators.
        fit_to: What a calibrated score is.
        device: Where the detector runs.
        batch_size: Number of images of a batch.
        num_workers: Number of processes that load images.
        max_images: Use only the first so many; None for all.
        seed: Of the division of the images into folds.

    Raises:
        ConfigError: The data or the config are wrong. The message speaks of the arguments.
        TeacherError: The weights do not fit.
    """
    register_all_modules(init_default_scope=True)
    with errors_name_arguments():
        measured = build_measured_detector(cfg, checkpoint, device)
        data = read_held_out(
            _with_empty_images(cfg),
            ann_file,
            images,
            num_classes=measured.num_classes,
            classes=measured.classes,
            max_images=max_images,
        )
        found = list(_detections(measured.detector, data, batch_size, num_workers))
    classes = data.dataset.metainfo['classes']
    with redirect_stdout(io.StringIO()):  # pycocotools reports its progress by print()
        coco = COCO(str(ann_file))
    arguments = coco, found, data.dataset.cat_ids, classes
    before, after = cross_fitted(*arguments, method=method, fit_to=fit_to, seed=seed)
    about = {
        'detector': describe_source(config, checkpoint),
        'data': data.describe(),
        'seed': seed,
        'versions': installed_versions(),
    }
    warnings = [text for _, text in find_overlaps(cfg, data)]
    return BoxCalibrationResult(_fit(*arguments, method, fit_to), before, after, about, warnings)


def cross_fitted(
    coco: COCO,
    images: Sequence[ImageDetections],
    category_ids: Sequence[int],
    class_names: Sequence[str],
    *,
    method: Method,
    fit_to: FitTo,
    seed: int,
) -> tuple[dict[str, float], dict[str, float]]:
    """Measure final boxes before and after a calibration that was fitted to other images.

    Args:
        coco: The ground truth.
        images: The boxes of all images.
        category_ids: The category id of each label.
        class_names: The name of each label.
        method: The kind of the calibrators.
        fit_to: What a calibrated score is.
        seed: Of the division of the images into :data:`NUM_FOLDS` folds.

    Returns:
        The figures before and after, see :class:`BoxCalibrationResult`.

    Raises:
        ConfigError: There are fewer images than folds, or a fold has no true positive.
    """
    if len(images) < NUM_FOLDS:
        raise ConfigError(
            f'there are {len(images)} images, but the calibration is judged on {NUM_FOLDS} parts '
            'of them: give more images'
        )
    folds = np.random.default_rng(seed).permutation(len(images)) % NUM_FOLDS
    raw, calibrated = [], []
    for fold in range(NUM_FOLDS):
        others = [image for image, other in zip(images, folds) if other != fold]
        calibration = _fit(coco, others, category_ids, class_names, method, fit_to)
        for image in (image for image, other in zip(images, folds) if other == fold):
            scores = calibration.calibrate(image.scores, image.labels)
            new = ImageDetections(image.image_id, image.boxes, scores, image.labels)
            raw.append(image.select(~(image.scores < calibration.raw_thresholds[image.labels])))
            calibrated.append(new.select(calibration.keeps(image.scores, scores, image.labels)))
    settings = resolve_settings(
        None, iou_thr=None, num_bins=None, score_thr=None, lrp_iou_thr=IOU_THRESHOLDS[fit_to]
    )
    before, after = (
        measure_boxes(coco, part, category_ids, class_names, settings).figures
        for part in (raw, calibrated)
    )
    return before, after


def summary(result: BoxCalibrationResult, path: Path) -> str:
    """Return what the terminal shows: figures before and after, and how to use the file."""
    calibration = result.calibration
    names = [name for name in result.before if name.startswith(_FIGURES) and 'er_' not in name]
    rows = [f'{name:<14}{result.before[name]:>8.4f}{result.after[name]:>8.4f}' for name in names]
    return '\n'.join(
        [
            f'{calibration.method} of {len(calibration.class_names)} classes, fitted to '
            f'{sum(calibration.num_boxes)} boxes of {result.about["data"]["num_images"]} images; '
            f'a calibrated score is the {_meaning(calibration.fit_to)}',
            '',
            f'on images that it was not fitted to ({NUM_FOLDS} folds), above the thresholds:',
            f'{"":<14}{"before":>8}{"after":>8}',
            *rows,
            *(f'warning: {sentence}' for sentence in result.warnings),
            '',
            "in a test by mmdet's tools/test.py",
            '    --cfg-options default_hooks.boxes.type=calkd_det.evaluation.BoxCalibrationHook '
            f'default_hooks.boxes.parameters={path}',
        ]
    )


def write_result(result: BoxCalibrationResult, out: Path) -> Path:
    """Write the file that :class:`calkd_det.evaluation.BoxCalibrationHook` reads."""
    path = out / FILE_NAME
    write_json(path, result.to_plain())
    return path


def _fit(
    coco: COCO,
    images: Sequence[ImageDetections],
    category_ids: Sequence[int],
    class_names: Sequence[str],
    method: Method,
    fit_to: FitTo,
) -> BoxCalibration:
    (matches,) = match_detections(coco, images, category_ids, [IOU_THRESHOLDS[fit_to]])
    num_objects = count_objects(coco, images, category_ids)
    return fit_box_calibration(matches, num_objects, class_names, method, fit_to)


def _detections(
    detector: nn.Module, data: HeldOutData, batch_size: int, num_workers: int
) -> Iterator[ImageDetections]:
    loader = DataLoader(
        data.dataset, batch_size, num_workers=num_workers, collate_fn=pseudo_collate
    )
    detector.eval()
    with torch.no_grad(), tqdm(total=len(data.dataset), unit='image') as bar:
        for batch in loader:
            for sample in detector.test_step(batch):
                yield ImageDetections.from_instances(sample.img_id, sample.pred_instances)
                bar.update()


def _with_empty_images(cfg: Config) -> Config:
    """Return a config whose training leaves out no image: each box on an empty one is wrong."""
    cfg = copy.deepcopy(cfg)
    for leaf in leaf_datasets((cfg.get('train_dataloader') or {}).get('dataset')):
        leaf.pop('filter_cfg', None)
    return cfg


def _meaning(fit_to: FitTo) -> str:
    if fit_to == 'iou':
        return 'expected IoU of a box with its object, 0 for a false positive'
    return 'probability of a true positive at IoU >= 0.5'
