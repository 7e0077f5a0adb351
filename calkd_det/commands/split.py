"""Split a COCO annotation file into disjoint parts with the same mixture of classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calkd_det.errors import ConfigError
from calkd_det.measurement.coco_file import read_coco
from calkd_det.measurement.held_out import sha256_of
from calkd_det.measurement.json_file import write_json
from calkd_det.measurement.stratified_split import stratify

RECORD_FILE = 'split.json'

_ENTRIES_AT_ONCE = 1000


@dataclass(frozen=True)
class Part:
    """One part of a split.

    Attributes:
        file: Its annotation file.
        image_ids: Ids of its images, those of the original file, in its order.
        num_objects: Number of its objects of each class, without crowds, in the order of the
            file's categories.
        num_empty: Number of its images without an object.
    """

    file: Path
    image_ids: list[Any]
    num_objects: list[int]
    num_empty: int


@dataclass(frozen=True)
class Split:
    """A split that was written.

    Attributes:
        parts: The parts by name.
        classes: Names of the categories, in their order.
        num_left_over: Number of images that are in no part.
        num_orphans: Number of annotations of images that the file does not list.
        record: The file with the ids of each part.
    """

    parts: dict[str, Part]
    classes: list[str]
    num_left_over: int
    num_orphans: int
    record: Path


def split(ann_file: Path, out: Path, sizes: Mapping[str, int | None], seed: int = 0) -> Split:
    """Split an annotation file into disjoint parts, each a file of its own.

    Each class has about the same share of the images of each part, and so have images without
    objects. Crowds stay with their image, and do not count as objects. Everything but images and
    annotations is the same in all files, so labels are too.

    Args:
        ann_file: COCO annotation file.
        out: Folder of the parts, created if it does not exist.
        sizes: Number of images of each part by its name. None for all images that are in no other
            part, at most once.
        seed: Seed. The same file, sizes and seed give the same parts.

    Raises:
        ConfigError: The file cannot be read, has too few images, or a part is there already.
        CalKDError: The package ``iterative-stratification`` is not installed.
    """
    files = {name: out / f'{name}.json' for name in sizes}
    record = out / RECORD_FILE
    for file in (*files.values(), record):
        if file.exists():
            raise ConfigError(f"'{file}' exists already: give another --out, or remove it first")
    content = read_coco(ann_file)
    row_of_image = _row_of_image(content, ann_file)
    counts = _images_of_parts(sizes, len(row_of_image), ann_file)
    objects, crowds = _count_objects(content, row_of_image, ann_file)
    num_left_over = len(row_of_image) - sum(counts)
    all_counts = [*counts, num_left_over] if num_left_over else counts
    part_of_row = stratify(objects > 0, all_counts, seed)

    out.mkdir(parents=True, exist_ok=True)
    annotations = _annotations_by_part(content, row_of_image, part_of_row, len(all_counts))
    parts = {}
    for index, (name, file) in enumerate(files.items()):
        rows = np.flatnonzero(part_of_row == index)
        images = [content['images'][row] for row in rows]
        _write(file, {**content, 'images': images, 'annotations': annotations[index]})
        parts[name] = Part(
            file=file,
            image_ids=[image['id'] for image in images],
            num_objects=objects[rows].sum(axis=0).tolist(),
            num_empty=int((objects[rows].sum(axis=1) == 0).sum()),
        )
    num_orphans = len(content['annotations']) - int(objects.sum()) - crowds
    classes = [category['name'] for category in content['categories']]
    found = Split(parts, classes, num_left_over, num_orphans, record)
    write_json(record, _record(found, ann_file, seed))
    return found


def summary(found: Split) -> str:
    """Return a table of images, objects and objects by class, a column a part."""
    parts = found.parts
    objects = [sum(part.num_objects) for part in parts.values()]
    rows = [
        ['', *parts],
        ['images', *(len(part.image_ids) for part in parts.values())],
        ['  without objects', *(part.num_empty for part in parts.values())],
        ['objects', *objects],
        *(
            [f'  {name}', *(part.num_objects[index] for part in parts.values())]
            for index, name in enumerate(found.classes)
        ),
    ]
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]
    lines = [
        str(row[0]).ljust(widths[0])
        + ''.join(str(cell).rjust(width + 2) for cell, width in zip(row[1:], widths[1:]))
        for row in rows
    ]
    if found.num_left_over:
        lines.append(f'{found.num_left_over} images are in no part')
    if found.num_orphans:
        lines.append(
            f'left out: {found.num_orphans} annotations of images that the file does not list'
        )
    return '\n'.join([*lines, f'ids of the images: {found.record}'])


def _images_of_parts(sizes: Mapping[str, int | None], num_images: int, ann_file: Path) -> list[int]:
    """Return the number of images of each part."""
    rest = num_images - sum(size or 0 for size in sizes.values())
    if rest < 0 or (rest == 0 and None in sizes.values()):
        raise ConfigError(
            f"--parts: '{ann_file}' has {num_images} images, too few for {_words(sizes)}"
        )
    return [rest if size is None else size for size in sizes.values()]


def _words(sizes: Mapping[str, int | None]) -> str:
    return ' '.join(name if size is None else f'{name}={size}' for name, size in sizes.items())


def _row_of_image(content: Mapping[str, Any], ann_file: Path) -> dict[Any, int]:
    """Return the place of each image in the file by its id."""
    rows: dict[Any, int] = {}
    for row, image in enumerate(content['images']):
        if not isinstance(image, Mapping) or 'id' not in image:
            raise ConfigError(f"'{ann_file}': images[{row}] has no 'id'")
        if image['id'] in rows:
            raise ConfigError(f"'{ann_file}' lists two images with the id {image['id']!r}")
        rows[image['id']] = row
    return rows


def _count_objects(
    content: Mapping[str, Any], row_of_image: Mapping[Any, int], ann_file: Path
) -> tuple[np.ndarray, int]:
    """Count objects by image and class, int64, shape (N, C), and the crowds."""
    for index, category in enumerate(content['categories']):
        if not isinstance(category, Mapping) or not {'id', 'name'} <= category.keys():
            raise ConfigError(f"'{ann_file}': categories[{index}] lacks 'id' or 'name'")
    column_of_class = {category['id']: i for i, category in enumerate(content['categories'])}
    counts = np.zeros((len(row_of_image), len(content['categories'])), dtype=np.int64)
    crowds = 0
    for index, annotation in enumerate(content['annotations']):
        try:
            image, category = annotation['image_id'], annotation['category_id']
        except (KeyError, TypeError):
            raise ConfigError(
                f"'{ann_file}': annotations[{index}] lacks 'image_id' or 'category_id'"
            ) from None
        if category not in column_of_class:
            raise ConfigError(
                f"'{ann_file}': annotations[{index}] has the category {category!r}, which the file "
                'does not list'
            )
        if image not in row_of_image:
            continue
        if annotation.get('iscrowd'):
            crowds += 1
        else:
            counts[row_of_image[image], column_of_class[category]] += 1
    return counts, crowds


def _annotations_by_part(
    content: Mapping[str, Any],
    row_of_image: Mapping[Any, int],
    part_of_row: np.ndarray,
    num_parts: int,
) -> list[list[Any]]:
    by_part: list[list[Any]] = [[] for _ in range(num_parts)]
    for annotation in content['annotations']:
        row = row_of_image.get(annotation['image_id'])
        if row is not None:
            by_part[part_of_row[row]].append(annotation)
    return by_part


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Write an annotation file without a copy of its whole text in memory."""
    encode = json.JSONEncoder(ensure_ascii=False).encode
    partial = path.with_name(f'{path.name}.partial')
    with partial.open('w', encoding='utf-8') as file:
        for number, (key, value) in enumerate(content.items()):
            file.write(f'{", " if number else "{"}{encode(key)}: ')
            if not isinstance(value, list):
                file.write(encode(value))
                continue
            file.write('[')
            for start in range(0, len(value), _ENTRIES_AT_ONCE):
                entries = encode(value[start : start + _ENTRIES_AT_ONCE])
                file.write(f'{", " if start else ""}{entries[1:-1]}')
            file.write(']')
        file.write('}\n')
    partial.replace(path)


def _record(found: Split, ann_file: Path, seed: int) -> dict[str, Any]:
    return {
        'annotation_file': str(ann_file),
        'annotation_file_sha256': sha256_of(ann_file),
        'seed': seed,
        'num_images_in_no_part': found.num_left_over,
        'parts': {
            name: {
                'annotation_file': part.file.name,
                'num_images': len(part.image_ids),
                'num_images_without_objects': part.num_empty,
                'num_objects': dict(zip(found.classes, part.num_objects)),
                'image_ids': part.image_ids,
            }
            for name, part in found.parts.items()
        },
    }
