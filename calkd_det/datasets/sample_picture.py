"""A picture of a mini data set: some images of each split with their boxes and class names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from calkd_det.datasets.items import SPLITS
from calkd_det.datasets.scenes import Xywh, overlap

SAMPLE_COLUMNS = 6
SAMPLE_SIDE = 320
SAMPLE_HEADER = 36
SAMPLE_GAP = 6
SAMPLE_BOX = (0, 255, 255)


def draw_samples(root: Path) -> np.ndarray:
    """Draw the first images of each split, one row a split, with their boxes and class names.

    Args:
        root: The folder of a mini data set.

    Returns:
        BGR, uint8, shape (height, width, 3).
    """
    return np.concatenate([_draw_sample_row(root, split) for split in SPLITS])


def _draw_sample_row(root: Path, split: str) -> np.ndarray:
    coco = json.loads((root / 'annotations' / f'{split}.json').read_text('utf-8'))
    names = {category['id']: category['name'] for category in coco['categories']}
    stride = SAMPLE_SIDE + SAMPLE_GAP
    row = np.full((SAMPLE_HEADER + stride, SAMPLE_GAP + SAMPLE_COLUMNS * stride, 3), 32, np.uint8)
    title = f'{split}: {len(coco["images"])} images, {len(coco["annotations"])} boxes'
    _put_text(row, title, (SAMPLE_GAP, SAMPLE_HEADER - 11), 0.7, (255, 255, 255))
    for column, image in enumerate(coco['images'][:SAMPLE_COLUMNS]):
        picture = _read_image(root / split / image['file_name'])
        scale = SAMPLE_SIDE / image['width']
        picture = cv2.resize(picture, (SAMPLE_SIDE, SAMPLE_SIDE), interpolation=cv2.INTER_CUBIC)
        entries = [entry for entry in coco['annotations'] if entry['image_id'] == image['id']]
        boxes = [tuple(round(value * scale) for value in entry['bbox']) for entry in entries]
        _draw_boxes(picture, boxes, [names[entry['category_id']] for entry in entries])
        left = SAMPLE_GAP + column * stride
        row[SAMPLE_HEADER : SAMPLE_HEADER + SAMPLE_SIDE, left : left + SAMPLE_SIDE] = picture
    return row


def _draw_boxes(picture: np.ndarray, boxes: Sequence[Xywh], names: Sequence[str]) -> None:
    for left, top, width, height in boxes:
        corner = (left + width - 1, top + height - 1)
        cv2.rectangle(picture, (left, top), corner, SAMPLE_BOX, 1)
    taken = list(boxes)
    for box, name in zip(boxes, names):
        (width, height), _ = cv2.getTextSize(name, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)
        left, top, width, height = _place_name(box, width + 4, height + 5, taken)
        taken.append((left, top, width, height))
        corner = (left + width - 1, top + height - 1)
        cv2.rectangle(picture, (left, top), corner, SAMPLE_BOX, cv2.FILLED)
        _put_text(picture, name, (left + 2, top + height - 3), 0.45, (0, 0, 0))


def _place_name(box: Xywh, width: int, height: int, taken: Sequence[Xywh]) -> Xywh:
    """Find the place of a box's name, around or inside the box, that covers the least."""
    x, y, box_width, box_height = box
    right, bottom = x + box_width, y + box_height
    corners = [(x, y - height), (x, bottom), (right, y), (x - width, y), (x, y)]
    inside = [
        (left, top, width, height)
        for left, top in corners
        if 0 <= left <= SAMPLE_SIDE - width and 0 <= top <= SAMPLE_SIDE - height
    ]
    # In a corner of the image no place may be left; the name is then cut off.
    places = inside or [(x, y, width, height)]
    return min(places, key=lambda place: sum(overlap(place, other) for other in taken))


def _put_text(
    picture: np.ndarray,
    text: str,
    origin: tuple[int, int],
    scale: float,
    colour: tuple[int, int, int],
) -> None:
    font = cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(picture, text, origin, font, scale, colour, 1, cv2.LINE_AA)


def _read_image(path: Path) -> np.ndarray:
    # cv2.imread would return None instead of raising an error.
    return cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
