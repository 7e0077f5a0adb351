"""Scenes: items turned, coloured and blended onto a crop of a photograph, with tight boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from calkd_det.datasets.items import Items, import_sklearn_datasets

# Left, top, width and height in whole pixels.
Xywh = tuple[int, int, int, int]

ITEM_SIZE = (18, 52)
MAX_ITEMS = 6
MAX_ANGLE = 20.0  # degrees; at 180 a six would look like a nine
MAX_OVERLAP = 0.15
PLACING_TRIES = 20
MIN_ALPHA = 0.1
CONTRAST = (45.0, 130.0)
OPACITY = (0.75, 1.0)
LUMA = np.array([0.299, 0.587, 0.114], np.float32)

PHOTO_CREDITS = {
    'china.jpg': 'china.jpg by danielbuechele, flickr.com/photos/danielbuechele/6061409035',
    'flower.jpg': 'flower.jpg by vultilion, flickr.com/photos/vultilion/6056698931',
}


@dataclass(frozen=True)
class Box:
    """One item in a scene.

    Attributes:
        xywh: Left, top, width and height in whole pixels.
        label: Index of the class.
        item_id: Index of the item in its source.
    """

    xywh: Xywh
    label: int
    item_id: int


@dataclass(frozen=True, eq=False)
class Scene:
    """An image with its boxes.

    Attributes:
        image: RGB, uint8, shape (S, S, 3).
        background: The same image without items.
        photo: File name of the photograph of the background.
        boxes: 1 to ``MAX_ITEMS`` boxes. A later item is drawn over an earlier one.
    """

    image: np.ndarray
    background: np.ndarray
    photo: str
    boxes: tuple[Box, ...]


def load_photos() -> dict[str, np.ndarray]:
    """Load scikit-learn's two photographs.

    Returns:
        RGB images, uint8, shape (427, 640, 3), by file name.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    bunch = import_sklearn_datasets().load_sample_images()
    names = (name.replace('\\', '/').rsplit('/', 1)[-1] for name in bunch.filenames)
    return dict(sorted(zip(names, bunch.images)))


def draw_scene(
    rng: np.random.Generator,
    items: Items,
    item_ids: np.ndarray,
    photos: dict[str, np.ndarray],
    size: int,
) -> Scene:
    """Draw one random scene.

    All classes are equally likely, whatever their shares of the pool. The boxes of two items
    overlap by at most ``MAX_OVERLAP`` of the smaller one, so no item hides another.

    Args:
        rng: The only source of randomness.
        items: The items of a source.
        item_ids: Integers, shape (M,), the items to choose from, at least one of each class.
        photos: RGB photographs, uint8, shape (H, W, 3), by file name.
        size: Side of the scene in pixels, larger than any turned item.
    """
    photo = str(rng.choice(list(photos)))
    background = crop_background(rng, photos[photo], size)
    canvas = background.astype(np.float32)
    pool_labels = items.labels[item_ids]
    boxes: list[Box] = []
    for _ in range(rng.integers(1, MAX_ITEMS + 1)):
        label = int(rng.integers(len(items.classes)))
        item_id = int(rng.choice(item_ids[pool_labels == label]))
        alpha, shade = warp_item(
            items.images[item_id],
            size=rng.uniform(*ITEM_SIZE),
            angle=rng.uniform(-MAX_ANGLE, MAX_ANGLE),
            textured=items.textured,
        )
        xywh = find_place(rng, alpha.shape, size, [box.xywh for box in boxes])
        if xywh is not None:
            blend(rng, canvas, alpha, shade, xywh)
            boxes.append(Box(xywh, label, item_id))
    image = np.rint(canvas).astype(np.uint8)
    return Scene(image=image, background=background, photo=photo, boxes=tuple(boxes))


def crop_background(rng: np.random.Generator, photo: np.ndarray, size: int) -> np.ndarray:
    """Crop a random square of a photograph, flip it at random and change its brightness.

    Args:
        rng: The only source of randomness.
        photo: RGB, uint8, shape (H, W, 3).
        size: Side of the result in pixels.

    Returns:
        RGB, uint8, shape (size, size, 3).
    """
    height, width = photo.shape[:2]
    longest = min(height, width)
    side = int(rng.integers(min(size, longest), longest + 1))
    top = int(rng.integers(height - side + 1))
    left = int(rng.integers(width - side + 1))
    crop = photo[top : top + side, left : left + side]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    method = cv2.INTER_AREA if side >= size else cv2.INTER_CUBIC
    crop = cv2.resize(np.ascontiguousarray(crop), (size, size), interpolation=method)
    jittered = crop * rng.uniform(0.7, 1.2) + rng.uniform(-15, 15)
    return np.clip(np.rint(jittered), 0, 255).astype(np.uint8)


def warp_item(
    image: np.ndarray, *, size: float, angle: float, textured: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Scale an item to ``size`` pixels, turn it, and crop it tightly.

    Args:
        image: uint8, shape (H, H).
        size: Side of the scaled picture in pixels, before it is turned.
        angle: Degrees, anticlockwise.
        textured: See ``Items.textured``.

    Returns:
        Two float32 arrays of shape (h, w). Alpha is 0 or in [``MIN_ALPHA``, 1], and each border
        has a pixel that is not 0. Shade is the texture, of mean 0 over the item and in units of
        full scale, and 0 for an item without texture.
    """
    ink = image.astype(np.float32) / 255
    cover = _silhouette(image) if textured else ink
    source_side = image.shape[0]
    side = int(np.ceil(size * np.sqrt(2))) + 2
    middle = (source_side - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), angle, size / source_side)
    matrix[:, 2] += (side - 1) / 2 - middle
    warped = cv2.warpAffine(cover, matrix, (side, side), flags=cv2.INTER_CUBIC)
    # Bicubic scaling blurs the edge; the ramp makes it steep again.
    alpha = np.clip((warped - 0.2) / 0.4, 0, 1)
    alpha[alpha < MIN_ALPHA] = 0
    left, top, width, height = cv2.boundingRect((alpha > 0).astype(np.uint8))
    cut = np.s_[top : top + height, left : left + width]
    alpha = alpha[cut]
    if not textured:
        return alpha, np.zeros_like(alpha)
    grey = np.clip(cv2.warpAffine(ink, matrix, (side, side), flags=cv2.INTER_CUBIC), 0, 1)[cut]
    return alpha, grey - np.average(grey, weights=alpha)


def find_place(
    rng: np.random.Generator,
    shape: tuple[int, int],
    size: int,
    others: Sequence[Xywh],
) -> Xywh | None:
    """Find a random place inside the scene that does not hide the other boxes.

    Args:
        rng: The only source of randomness.
        shape: Height and width of the item in pixels.
        size: Side of the scene in pixels.
        others: The boxes of the scene so far, as (x, y, w, h).

    Returns:
        The box as (x, y, w, h), or None if none of ``PLACING_TRIES`` tries found a place.
    """
    height, width = shape
    for _ in range(PLACING_TRIES):
        x = int(rng.integers(size - width + 1))
        y = int(rng.integers(size - height + 1))
        box = (x, y, width, height)
        if all(overlap(box, other) <= MAX_OVERLAP for other in others):
            return box
    return None


def overlap(a: Xywh, b: Xywh) -> float:
    """Return the intersection of two (x, y, w, h) boxes over the smaller area, in [0, 1].

    Unlike the IoU it is 1 for a small box inside a large one.
    """
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0) / min(a[2] * a[3], b[2] * b[3])


def blend(
    rng: np.random.Generator,
    canvas: np.ndarray,
    alpha: np.ndarray,
    shade: np.ndarray,
    xywh: Xywh,
) -> None:
    """Blend an item into ``canvas`` in a random colour, darker or lighter than the canvas there.

    Args:
        rng: The only source of randomness.
        canvas: RGB, float32, shape (S, S, 3), in [0, 255]; changed in place.
        alpha: float32, shape (h, w), in [0, 1].
        shade: float32, shape (h, w), the texture in units of full scale.
        xywh: The box of the item; w and h are those of ``alpha``.
    """
    x, y, width, height = xywh
    region = canvas[y : y + height, x : x + width]
    base = float(np.average(region @ LUMA, weights=alpha))
    step = rng.uniform(*CONTRAST) * rng.choice((-1, 1))
    # A step out of range changes its sign, as the clip below would reduce the contrast.
    target = base + step if 0 <= base + step <= 255 else base - step
    colour = rng.uniform(0, 255, 3).astype(np.float32)
    colour += target - colour @ LUMA
    paint = np.clip(colour + 160 * shade[..., None], 0, 255)
    weight = (alpha * rng.uniform(*OPACITY))[..., None]
    region += weight * (paint - region)


def _silhouette(image: np.ndarray) -> np.ndarray:
    """Return the mask of a textured item without stray specks: 1 or 0, float32, shape (H, W)."""
    mask = (image > 8).astype(np.uint8)
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    _, parts, stats, _ = cv2.connectedComponentsWithStats(mask)
    areas = stats[:, cv2.CC_STAT_AREA]
    keep = areas >= 0.05 * mask.sum()
    keep[0] = False
    return keep[parts].astype(np.float32)
