"""The mini data set: a small detection set in COCO format, made of data with free licences.

Real handwritten digits, or Fashion-MNIST's clothes, are turned, coloured and blended onto random
crops of two real photographs. The same arguments and library versions give the same bytes. The
splits share the two photographs but no item.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from calkd_det.datasets.items import SPLITS, Items, has_source, load_items, split_pool
from calkd_det.datasets.sample_picture import draw_samples
from calkd_det.datasets.scenes import PHOTO_CREDITS, Scene, draw_scene, load_photos
from calkd_det.errors import ConfigError

GENERATOR_VERSION = 1
DEFAULT_NUM_IMAGES = {'train': 640, 'calibration': 200, 'val': 300}
DEFAULT_IMAGE_SIZE = 128
MIN_IMAGE_SIZE = 96
JPEG_QUALITY = 95
# The ids of each split start at another multiple, so no two splits share an id.
ID_STRIDE = 1_000_000

MANIFEST = 'mini_dataset.json'
SAMPLES = 'samples.png'
GENERATED_FILES = re.compile(
    r'(train|calibration|val)/\d{7}\.jpg'
    r'|annotations/(train|calibration|val)\.json'
    rf'|{re.escape(SAMPLES)}|{re.escape(MANIFEST)}'
)

PHOTO_LICENSE_ID = 1
ITEM_LICENSE_ID = 2


@dataclass(frozen=True)
class MiniDataset:
    """A mini data set on disk.

    Attributes:
        root: Its folder, with a folder of images for each split and ``annotations/<split>.json``.
        created: False if the data set existed already.
        classes: The class names, in the order of the category ids 1, 2, ...
        num_images: Number of images by split.
        boxes_per_class: Number of boxes by split, then by class name.
    """

    root: Path
    created: bool
    classes: tuple[str, ...]
    num_images: dict[str, int]
    boxes_per_class: dict[str, dict[str, int]]

    @property
    def samples(self) -> Path:
        """The file of the picture of sample images with their boxes."""
        return self.root / SAMPLES

    def annotations(self, split: str) -> Path:
        """Return the COCO annotation file of a split."""
        return _annotation_file(self.root, split)


def write_mini_dataset(
    out_dir: str | Path,
    *,
    items: str = 'digits',
    source: str | Path | None = None,
    num_images: Mapping[str, int] | None = None,
    image_size: int = DEFAULT_IMAGE_SIZE,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = False,
) -> MiniDataset:
    """Write the mini data set, unless it exists already.

    An image depends only on the source, the seed, the image size, its split and its number: more
    images of one split change no other image. An interrupted run is started again. A set that
    exists needs no source, so that it can be copied to a machine that has none.

    Args:
        out_dir: The folder to write to. Other files in it are not touched.
        items: ``'digits'`` (scikit-learn's) or ``'fashion-mnist'``.
        source: The folder of the Fashion-MNIST files; None for the folder of Debian's package
            ``dataset-fashion-mnist``.
        num_images: Number of images by split; ``DEFAULT_NUM_IMAGES`` for a split left out.
        image_size: Side of the square images in pixels.
        seed: Seed of the split of items and of every image, >= 0.
        overwrite: Replace a mini data set that was made with other arguments.
        progress: Show a progress bar.

    Raises:
        ConfigError: An argument is out of range, the source is missing or damaged, scikit-learn is
            not installed, or ``out_dir`` holds another mini data set (without ``overwrite``) or
            other files.
    """
    root = Path(out_dir)
    counts = _check_counts(num_images)
    if image_size < MIN_IMAGE_SIZE:
        raise ConfigError(f'image_size must be at least {MIN_IMAGE_SIZE} pixels, not {image_size}.')
    if seed < 0:
        raise ConfigError(f'seed must not be negative, but is {seed}.')
    exists = (root / MANIFEST).exists() and not overwrite
    item_pool = None if exists and not has_source(items, source) else load_items(items, source)
    request = {
        'generator_version': GENERATOR_VERSION,
        'items': items,
        **({} if item_pool is None else {'items_sha256': item_pool.sha256()}),
        'num_images': counts,
        'image_size': image_size,
        'seed': seed,
    }
    if exists:
        return _open_existing(root, request)
    photos = load_photos()
    _remove_generated(root)
    return _build(root, item_pool, photos, request, progress)


def annotate(image_id: int, scene: Scene, first_annotation_id: int) -> tuple[dict, list[dict]]:
    """Return a scene as a COCO image entry and its annotation entries.

    Args:
        image_id: The id of the image.
        scene: The scene.
        first_annotation_id: The id of its first annotation; the others follow.
    """
    height, width = scene.image.shape[:2]
    image = {
        'id': image_id,
        'file_name': f'{image_id:07d}.jpg',
        'width': width,
        'height': height,
        'license': PHOTO_LICENSE_ID,
        'photo': scene.photo,
    }
    annotations = [
        {
            'id': annotation_id,
            'image_id': image_id,
            'category_id': box.label + 1,
            'bbox': list(box.xywh),
            'area': box.xywh[2] * box.xywh[3],
            'iscrowd': 0,
            'segmentation': [],
            'item_id': box.item_id,
        }
        for annotation_id, box in enumerate(scene.boxes, first_annotation_id)
    ]
    return image, annotations


def _check_counts(num_images: Mapping[str, int] | None) -> dict[str, int]:
    counts = DEFAULT_NUM_IMAGES | dict(num_images or {})
    unknown = sorted(set(counts) - set(SPLITS))
    if unknown:
        raise ConfigError(f"num_images has the unknown split '{unknown[0]}'.")
    for split, count in counts.items():
        if not 1 <= count < ID_STRIDE:
            raise ConfigError(f'num_images of {split} must be 1 to {ID_STRIDE - 1}, not {count}.')
    return counts


def _build(
    root: Path,
    items: Items,
    photos: dict[str, np.ndarray],
    request: dict[str, Any],
    progress: bool,
) -> MiniDataset:
    pools = split_pool(items.labels, request['seed'])
    (root / 'annotations').mkdir(parents=True, exist_ok=True)
    total = sum(request['num_images'].values())
    boxes_per_class = {}
    with tqdm(total=total, desc='mini data set', unit='image', disable=not progress) as bar:
        for split_index, split in enumerate(SPLITS):
            folder = root / split
            folder.mkdir(exist_ok=True)
            coco = _empty_coco(items, split)
            for number in range(1, request['num_images'][split] + 1):
                seeds = np.random.SeedSequence(request['seed'], spawn_key=(split_index, number))
                rng = np.random.default_rng(seeds)
                scene = draw_scene(rng, items, pools[split], photos, request['image_size'])
                image_id = split_index * ID_STRIDE + number
                # Ids start at 1, because COCO's evaluation reads an annotation id of 0 as no match.
                image, annotations = annotate(image_id, scene, len(coco['annotations']) + 1)
                _write_image(
                    folder / image['file_name'],
                    scene.image[..., ::-1],
                    cv2.IMWRITE_JPEG_QUALITY,
                    JPEG_QUALITY,
                )
                coco['images'].append(image)
                coco['annotations'] += annotations
                bar.update()
            _annotation_file(root, split).write_bytes(_json_bytes(coco))
            labels = [annotation['category_id'] - 1 for annotation in coco['annotations']]
            boxes = np.bincount(labels, minlength=len(items.classes)).tolist()
            boxes_per_class[split] = dict(zip(items.classes, boxes))
    _write_image(root / SAMPLES, draw_samples(root))
    manifest = {
        'request': request,
        'classes': items.classes,
        'boxes_per_class': boxes_per_class,
        'annotations_sha256': {split: _sha256(_annotation_file(root, split)) for split in SPLITS},
        'versions': {
            'numpy': np.__version__,
            'opencv': cv2.__version__,
            'scikit-learn': version('scikit-learn'),
        },
    }
    # Written last, so that a folder without it is an interrupted run.
    (root / MANIFEST).write_bytes(_json_bytes(manifest, indent=2))
    return _dataset_from_manifest(root, manifest, created=True)


def _empty_coco(items: Items, split: str) -> dict[str, Any]:
    credit = dict(items.credit)
    description = credit.pop('description')
    return {
        'info': {
            'description': f'CalKD-Det mini data set: {items.name} on photographs, {split}',
            'version': str(GENERATOR_VERSION),
            'sources': [
                *(
                    {'description': f'Photograph {text}', 'license': PHOTO_LICENSE_ID}
                    for text in PHOTO_CREDITS.values()
                ),
                {'description': description, 'license': ITEM_LICENSE_ID},
            ],
            'changes': 'Photographs cropped, flipped, scaled and changed in brightness; items '
            'scaled, turned, coloured and blended onto them.',
        },
        'licenses': [
            {
                'id': PHOTO_LICENSE_ID,
                'name': 'Attribution 2.0 Generic (CC BY 2.0)',
                'url': 'https://creativecommons.org/licenses/by/2.0/',
            },
            {'id': ITEM_LICENSE_ID, **credit},
        ],
        'images': [],
        'annotations': [],
        'categories': [
            {'id': label + 1, 'name': name, 'supercategory': items.name}
            for label, name in enumerate(items.classes)
        ],
    }


def _open_existing(root: Path, request: dict[str, Any]) -> MiniDataset:
    remedy = 'replace the set with overwrite=True (--force), or choose another folder'
    try:
        manifest = json.loads((root / MANIFEST).read_text('utf-8'))
        recorded = manifest['request']
        dataset = _dataset_from_manifest(root, manifest, created=False)
        hashes = {split: manifest['annotations_sha256'][split] for split in SPLITS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f'{root / MANIFEST} cannot be read ({error!r}): {remedy}.') from error
    differences = [
        f'{key} is {recorded.get(key)!r} there but {value!r} was asked for'
        for key, value in request.items()
        if recorded.get(key) != value
    ]
    if differences:
        raise ConfigError(
            f'{root} holds another mini data set ({"; ".join(differences)}): {remedy}.'
        )
    for split, digest in hashes.items():
        path = dataset.annotations(split)
        if not path.is_file() or _sha256(path) != digest:
            raise ConfigError(f'{path} was changed after it was written: {remedy}.')
    return dataset


def _dataset_from_manifest(root: Path, manifest: dict[str, Any], *, created: bool) -> MiniDataset:
    return MiniDataset(
        root=root,
        created=created,
        classes=tuple(manifest['classes']),
        num_images=manifest['request']['num_images'],
        boxes_per_class=manifest['boxes_per_class'],
    )


def _remove_generated(root: Path) -> None:
    """Remove the files of an earlier run, and no others."""
    if root.exists() and not root.is_dir():
        raise ConfigError(f'{root} is not a folder.')
    files = [path for path in root.rglob('*') if not path.is_dir()]
    generated = [
        path for path in files if GENERATED_FILES.fullmatch(path.relative_to(root).as_posix())
    ]
    if len(generated) < len(files) and not (root / MANIFEST).exists():
        other_file = next(path for path in files if path not in generated)
        raise ConfigError(
            f'{root} is not a mini data set, as it holds {other_file.relative_to(root)}: '
            'choose an empty or a new folder.'
        )
    # The manifest is removed first, so that an interrupted removal does not look complete.
    for path in sorted(generated, key=lambda path: path.name != MANIFEST):
        path.unlink()


def _annotation_file(root: Path, split: str) -> Path:
    return root / 'annotations' / f'{split}.json'


def _write_image(path: Path, image: np.ndarray, *options: int) -> None:
    # cv2.imwrite would return False instead of raising an error.
    _, data = cv2.imencode(path.suffix, np.ascontiguousarray(image), options)
    path.write_bytes(data.tobytes())


def _json_bytes(value: dict[str, Any], indent: int | None = None) -> bytes:
    return (json.dumps(value, indent=indent) + '\n').encode()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
