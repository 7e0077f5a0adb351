"""Reads what mmengine's ``Runner`` leaves on disk: scalars, metrics and detections."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calkd_det.errors import ConfigError

Scalars = dict[int, dict[str, float]]


@dataclass(frozen=True)
class Boxes:
    """The boxes of one image, in pixels of the original image.

    Attributes:
        xyxy: shape (N, 4).
        labels: shape (N,), indices into the class names.
        scores: shape (N,); None for ground truth.
    """

    xyxy: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None


@dataclass(frozen=True)
class GroundTruth:
    """A COCO annotation file, read: class names, and by image id the file's name and its boxes."""

    classes: tuple[str, ...]
    files: dict[int, str]
    boxes: dict[int, Boxes]


def read_scalars(folder: Path) -> Scalars:
    """Reads the training log of a run, a resumed one included.

    Args:
        folder: The run's folder, with ``<time>/vis_data/scalars.json`` of one or more starts.

    Returns:
        What was logged, by iteration.

    Raises:
        ConfigError: There is no log, or none of a training step.
    """
    scalars: Scalars = {}
    # Named by time: what a later start logged of the same iteration is what was trained on.
    for path in sorted(folder.glob('*/vis_data/scalars.json')):
        for line in path.read_text('utf-8').splitlines():
            entry = _parse_line(path, line)
            if 'loss' in entry:
                scalars[int(entry['step'])] = entry
    if not scalars:
        raise ConfigError(f'{folder} holds no training log: run the demo without --report-only.')
    return dict(sorted(scalars.items()))


def newest_metrics(folder: Path) -> Path | None:
    """Returns the last metrics file that ``test.py`` wrote below its work dir, or None."""
    paths = [path for path in folder.glob('*/*.json') if path.stem == path.parent.name]
    return max(paths, key=lambda path: path.name, default=None)


def read_metrics(folder: Path) -> dict[str, float]:
    """Reads the metrics of a test.

    Args:
        folder: The work dir that ``test.py`` was given.

    Returns:
        By mmdet's names, e.g. ``coco/bbox_mAP``, in [0, 1]; without them if nothing was detected.

    Raises:
        ConfigError: There are no metrics.
    """
    path = newest_metrics(folder)
    if path is None:
        raise ConfigError(f'{folder} holds no test results: run the demo without --report-only.')
    return _parse_line(path, path.read_text('utf-8'))


def read_calibration(path: Path) -> dict[str, Any]:
    """Reads what ``tools/calibrate_teacher.py`` wrote.

    Raises:
        ConfigError: The file is missing or damaged.
    """
    if not path.is_file():
        raise ConfigError(f'{path} is missing: run the demo without --report-only.')
    return _parse_line(path, path.read_text('utf-8'))


def read_detections(path: Path) -> dict[int, Boxes]:
    """Reads the file of ``test.py --out``; it is a pickle, so read none that is not your own.

    Returns:
        The detections by image id.

    Raises:
        ConfigError: The file is missing.
    """
    if not path.is_file():
        raise ConfigError(f'{path} is missing: run the demo without --report-only.')
    detections = {}
    for sample in pickle.loads(path.read_bytes()):
        found = sample['pred_instances']
        arrays = (np.asarray(found[name]) for name in ('bboxes', 'labels', 'scores'))
        detections[sample['img_id']] = Boxes(*arrays)
    return detections


def read_ground_truth(annotation_file: Path) -> GroundTruth:
    """Reads a COCO annotation file, whose categories are in the order of the labels.

    Raises:
        ConfigError: The file is missing.
    """
    if not annotation_file.is_file():
        raise ConfigError(f'{annotation_file} is missing: make the mini data set first.')
    coco = json.loads(annotation_file.read_text('utf-8'))
    label = {category['id']: index for index, category in enumerate(coco['categories'])}
    entries: dict[int, list[dict]] = {image['id']: [] for image in coco['images']}
    for entry in coco['annotations']:
        entries[entry['image_id']].append(entry)
    return GroundTruth(
        classes=tuple(category['name'] for category in coco['categories']),
        files={image['id']: image['file_name'] for image in coco['images']},
        boxes={key: _boxes_of(value, label) for key, value in entries.items()},
    )


def count_images(annotation_file: Path) -> int:
    """Returns the number of images of a COCO annotation file."""
    return len(read_ground_truth(annotation_file).files)


def _boxes_of(entries: Sequence[dict], label: dict[int, int]) -> Boxes:
    xywh = np.array([entry['bbox'] for entry in entries], dtype=float).reshape(-1, 4)
    return Boxes(
        xyxy=np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),
        labels=np.array([label[entry['category_id']] for entry in entries], dtype=int),
    )


def _parse_line(path: Path, line: str) -> dict[str, Any]:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ConfigError(f'{path} is damaged ({error}).') from error
