"""Draw detections of several detectors on the same images, beside the ground truth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Patch, Rectangle
from mmdet.evaluation.functional import bbox_overlaps
from mmengine.structures import InstanceData

from calkd_det.commands.study.demo.files import GroundTruth

ROWS = 5
SCORE_THRESHOLD = 0.3
IOU_THRESHOLD = 0.5
RIGHT, WRONG, TRUTH = '#1a9850', '#d73027', '#f5c518'


def choose_images(image_ids: Iterable[int]) -> list[int]:
    """Return evenly spaced ids, the first included: a rule that looks at no picture."""
    ids = sorted(image_ids)
    count = min(ROWS, len(ids))
    return [ids[index * len(ids) // count] for index in range(count)]


def above_threshold(boxes: InstanceData) -> InstanceData:
    """Return the detections with a score that is shown, the best first."""
    order = np.argsort(-boxes.scores, kind='stable')
    return boxes[order[boxes.scores[order] >= SCORE_THRESHOLD]]


def match(detections: InstanceData, truth: InstanceData) -> tuple[np.ndarray, np.ndarray]:
    """Match detections, the best first, to the objects of an image.

    Returns:
        Booleans, shape (N,): whether a detection has an IoU of at least 0.5 with an object of the
        same class that no detection before it has taken. Booleans, shape (M,): whether an object
        is missed by all detections.
    """
    right = np.zeros(len(detections.labels), dtype=bool)
    if not len(truth.labels):
        return right, np.zeros(0, dtype=bool)
    overlaps = bbox_overlaps(detections.bboxes, truth.bboxes)
    free = np.ones(len(truth.labels), dtype=bool)
    for index, label in enumerate(detections.labels):
        candidates = np.where(free & (truth.labels == label), overlaps[index], 0)
        best = candidates.argmax()
        right[index] = candidates[best] >= IOU_THRESHOLD
        free[best] &= not right[index]
    return right, free


def plot_grid(
    truth: GroundTruth, image_dir: Path, detections: Mapping[str, Mapping[int, InstanceData]]
) -> Figure:
    """Draw a row an image and a column a detector, after a column of ground truth.

    Args:
        truth: The annotated images.
        image_dir: The folder of their files.
        detections: By column title, then by image id.

    Returns:
        A figure; ``figure.savefig(path)`` writes it.
    """
    chosen = choose_images(truth.files)
    size = (3.1 * (1 + len(detections)), 3.1 * len(chosen) + 0.7)
    figure = Figure(figsize=size, dpi=130, layout='constrained')
    axes = figure.subplots(len(chosen), 1 + len(detections), squeeze=False)
    for row, image_id in zip(axes, chosen):
        image = imread(image_dir / truth.files[image_id])
        objects = truth.boxes[image_id]
        _draw(row[0], image, objects, truth.classes, [TRUTH] * len(objects.labels))
        row[0].set_ylabel(truth.files[image_id], fontsize=9)
        for ax, found in zip(row[1:], detections.values()):
            shown = above_threshold(found[image_id])
            right, missed = match(shown, objects)
            colours = [RIGHT if each else WRONG for each in right]
            _draw(ax, image, shown, truth.classes, colours)
            for box in objects.bboxes[missed]:
                _outline(ax, box, TRUTH, linestyle='--')
    for ax, title in zip(axes[0], ['ground truth', *detections]):
        ax.set_title(title, fontsize=13)
    figure.legend(
        handles=[
            Patch(color=TRUTH, label='annotated'),
            Patch(color=RIGHT, label=f'right: same class, IoU ≥ {IOU_THRESHOLD}'),
            Patch(color=WRONG, label='wrong, or found a second time'),
            Patch(fill=False, ec=TRUTH, ls='--', lw=1.6, label='missed'),
        ],
        title=f'detections with a score of at least {SCORE_THRESHOLD}',
        loc='outside lower center',
        ncols=4,
        frameon=False,
    )
    return figure


def _outline(ax: Axes, box: Sequence[float], colour: str, **style: str) -> None:
    left, top, right, bottom = box
    corner, size = (left, top), (right - left, bottom - top)
    ax.add_patch(Rectangle(corner, *size, fill=False, ec=colour, lw=1.6, **style))


def _draw(
    ax: Axes, image: np.ndarray, boxes: InstanceData, classes: Sequence[str], colours: Sequence[str]
) -> None:
    height, width = image.shape[:2]
    # Boxes count from the pixels' corners, imshow from their centres.
    ax.imshow(image, interpolation='bicubic', extent=(0, width, height, 0))
    ax.set_xticks([])
    ax.set_yticks([])
    scores = boxes.get('scores', [None] * len(boxes.labels))
    for (left, top, right, bottom), label, score, colour in zip(
        boxes.bboxes, boxes.labels, scores, colours
    ):
        _outline(ax, (left, top, right, bottom), colour)
        text = classes[label] if score is None else f'{classes[label]} {score:.2f}'
        # Right ones are named at the top and wrong ones at the bottom, as both often share a
        # place; outside the box where the image has room.
        room = 0.07 * height
        at_top = colour != WRONG
        raised = top > room if at_top else bottom > height - room
        inward = left > 0.75 * width
        ax.text(
            min(right, width) if inward else max(left, 0),
            top if at_top else bottom,
            text,
            ha='right' if inward else 'left',
            va='bottom' if raised else 'top',
            fontsize=7,
            color='black' if colour == TRUTH else 'white',
            bbox=dict(boxstyle='square,pad=0.1', fc=colour, ec='none', alpha=0.85),
            clip_on=True,
        )
