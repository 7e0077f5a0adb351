"""Read what the demo's pictures show: training logs, annotations, and detections."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmdet.apis import inference_detector, init_detector
from mmengine.structures import InstanceData

from calkd_det.errors import ConfigError

Scalars = dict[int, dict[str, float]]


@dataclass(frozen=True)
class GroundTruth:
    """A COCO annotation file: class names, and by image id the file's name and its boxes.

    Boxes are arrays in mmengine's ``InstanceData``: ``bboxes``, shape (N, 4), in pixels of the
    original image, and ``labels``, shape (N,), indices into the class names.
    """

    classes: tuple[str, ...]
    files: dict[int, str]
    boxes: dict[int, InstanceData]


def read_scalars(folder: Path) -> Scalars:
    """Read the training log of a run, a resumed one included.

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
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise ConfigError(f'{path} is damaged ({error}).') from error
            if 'loss' in entry:
                scalars[int(entry['step'])] = entry
    if not scalars:
        raise ConfigError(f'{folder} holds no training log: run the demo without --report-only.')
    return dict(sorted(scalars.items()))


def read_ground_truth(annotation_file: Path) -> GroundTruth:
    """Read a COCO annotation file whose categories are in the order of the labels."""
    coco = json.loads(annotation_file.read_text('utf-8'))
    label = {category['id']: index for index, category in enumerate(coco['categories'])}
    entries: dict[int, list[dict]] = {image['id']: [] for image in coco['images']}
    for entry in coco['annotations']:
        entries[entry['image_id']].append(entry)

    def boxes_of(found: Sequence[dict]) -> InstanceData:
        xywh = np.array([entry['bbox'] for entry in found], dtype=float).reshape(-1, 4)
        return InstanceData(
            bboxes=np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),
            labels=np.array([label[entry['category_id']] for entry in found], dtype=int),
        )

    return GroundTruth(
        classes=tuple(category['name'] for category in coco['categories']),
        files={image['id']: image['file_name'] for image in coco['images']},
        boxes={key: boxes_of(found) for key, found in entries.items()},
    )


def detect(config: str | Path, checkpoint: str, images: dict[int, Path]) -> dict[int, InstanceData]:
    """Run a detector on images.

    Args:
        config: Path of its config.
        checkpoint: Path of its weights.
        images: Image files by image id.

    Returns:
        Its detections by image id: boxes as in :class:`GroundTruth`, with ``scores``, shape (N,).
    """
    with redirect_stdout(io.StringIO()):  # mmengine prints the path
        detector = init_detector(str(config), checkpoint, device='cpu')
    return {
        image_id: inference_detector(detector, str(path)).pred_instances.cpu().numpy()
        for image_id, path in images.items()
    }


def same_boxes(one: Iterable[InstanceData], other: Iterable[InstanceData]) -> bool:
    """Tell whether two detectors found exactly the same boxes, labels and scores."""
    return all(
        np.array_equal(a.get(key), b.get(key))
        for a, b in zip(one, other)
        for key in ('bboxes', 'labels', 'scores')
    )
