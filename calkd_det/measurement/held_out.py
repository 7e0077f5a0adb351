"""Held-out data for a calibration: a COCO-format data set, read as a detector's config says."""

from __future__ import annotations

import copy
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import DefaultScope

from calkd_det.errors import ConfigError
from calkd_det.measurement.coco_file import read_coco
from calkd_det.teachers.class_names import configured_class_names, labelled_names

_LOADERS = ('test_dataloader', 'val_dataloader', 'train_dataloader')


@dataclass(frozen=True)
class HeldOutData:
    """A held-out data set, ready for :func:`~calkd_det.measurement.collect.collect_samples`.

    Attributes:
        dataset: The images after the config's test pipeline, with annotations in pixels of the
            resized image.
        ann_file: The COCO annotation file.
        images: The folder of its images.
        sha256: SHA-256 of the annotation file, in hexadecimal.
        num_listed: Number of images in the annotation file. The data set has fewer where the
            config's training leaves images out, for instance those without an object.
    """

    dataset: CocoDataset
    ann_file: Path
    images: Path
    sha256: str
    num_listed: int

    def describe(self) -> dict[str, Any]:
        """Return plain data on the images, for a report."""
        return {
            'annotation_file': str(self.ann_file),
            'annotation_file_sha256': self.sha256,
            'images': str(self.images),
            'num_images': len(self.dataset),
        }


def read_held_out(
    cfg: Config,
    ann_file: Path,
    images: Path,
    *,
    num_classes: int,
    classes: Sequence[str] | None = None,
    max_images: int | None = None,
) -> HeldOutData:
    """Open a COCO-format data set for a detector.

    Args:
        cfg: The detector's config. Its test pipeline and the filter of its training data are used.
        ann_file: COCO annotation file.
        images: Folder of its images.
        num_classes: The number C of foreground classes of the detector.
        classes: Their names in the detector's order; None for those of the config's test data.
        max_images: Number of images to use, from the first on; None for all.

    Raises:
        ConfigError: The file or an image is missing, the file is no COCO file, its categories are
            not the classes in their order, it lacks masks that the detector needs, or the config
            has no test pipeline.
    """
    content = read_coco(ann_file)
    leaf = _test_leaf(cfg)
    classes = tuple(classes or test_classes(cfg) or ())
    _check_classes(classes, num_classes, content, ann_file)
    # MaskFormer and its kin assign queries to objects by their masks.
    with_mask = 'panoptic_head' in cfg.model
    if with_mask and not all(each.get('segmentation') for each in content['annotations']):
        raise ConfigError(
            f"'{ann_file}' has objects without a mask: this detector assigns its queries to "
            "objects by their masks, so that each annotation must have its 'segmentation'"
        )
    train = next(leaf_datasets(_loader_dataset(cfg, 'train_dataloader')), {})
    dataset_cfg = dict(
        type=_dataset_class(leaf) if is_coco_dataset(leaf) else CocoDataset,
        ann_file=str(ann_file),
        data_prefix=dict(img=str(images)),
        metainfo=dict(classes=classes),
        pipeline=annotated(leaf.get('pipeline') or cfg.get('test_pipeline') or [], with_mask),
        # Images without objects are kept or left out as in training.
        filter_cfg=copy.deepcopy(train.get('filter_cfg')),
    )
    try:
        with redirect_stdout(io.StringIO()), DefaultScope.overwrite_default_scope('mmdet'):
            dataset = DATASETS.build(dataset_cfg)
    # mmdet and pycocotools check little of a file, and raise anything on a wrong one.
    except Exception as error:
        raise ConfigError(
            f"mmdet cannot read '{ann_file}' as a data set ({type(error).__name__}: {error})"
        ) from error
    labels = labelled_names(dataset)
    if labels != classes:
        raise ConfigError(
            f"'{ann_file}' lists its categories in another order, {labels}, than the detector's "
            f"classes, {classes}. mmdet numbers labels in the file's order and would mix them up: "
            'reorder its categories'
        )
    if max_images is not None and max_images < len(dataset):
        dataset.get_subset_(max_images)
    _check_images(dataset, ann_file, images)
    return HeldOutData(dataset, ann_file, images, sha256_of(ann_file), len(content['images']))


def test_classes(cfg: Config) -> tuple[str, ...] | None:
    """Return the class names of a config's test data; None where it names none.

    Raises:
        ConfigError: The config has no test data, or their classes cannot be read.
    """
    return _configured_names(_test_leaf(cfg))


def annotated(pipeline: Sequence[Mapping], with_mask: bool = False) -> list[dict]:
    """Return a test pipeline with boxes in pixels of the image that the detector gets.

    mmdet's own test pipelines load annotations after the resizing, because they compare them with
    boxes that are scaled back to the original image. The assigner needs boxes of the resized image.

    Args:
        pipeline: The test pipeline.
        with_mask: Whether to load the masks of objects as well.

    Raises:
        ConfigError: The pipeline does not load or does not pack images.
    """
    steps = [copy.deepcopy(dict(step)) for step in pipeline]
    steps = [step for step in steps if step.get('type') != 'LoadAnnotations']
    loading = [i for i, step in enumerate(steps) if str(step.get('type')).startswith('LoadImage')]
    packing = [step for step in steps if step.get('type') == 'PackDetInputs']
    if not loading or not packing:
        raise ConfigError(
            'the pipeline of test_dataloader must load an image (LoadImageFromFile) and pack it '
            f'(PackDetInputs), but has {[step.get("type") for step in steps]}'
        )
    masks = dict(with_mask=True) if with_mask else {}
    steps.insert(loading[0] + 1, dict(type='LoadAnnotations', with_bbox=True, **masks))
    if 'meta_keys' in packing[0] and 'img_id' not in packing[0]['meta_keys']:
        packing[0]['meta_keys'] = ('img_id', *packing[0]['meta_keys'])
    return steps


def leaf_datasets(dataset: Any) -> Iterator[Mapping]:
    """Yield the configs of data sets within wrappers such as ``RepeatDataset``."""
    if not isinstance(dataset, Mapping):
        return
    inner = [dataset['dataset']] if 'dataset' in dataset else dataset.get('datasets') or ()
    for child in inner:
        yield from leaf_datasets(child)
    if not inner:
        yield dataset


def is_coco_dataset(leaf: Mapping) -> bool:
    """Return whether the config of a data set is of mmdet's ``CocoDataset`` or a subclass."""
    cls = _dataset_class(leaf)
    return isinstance(cls, type) and issubclass(cls, CocoDataset)


def is_coco_file(path: Path) -> bool:
    """Return whether a file is a COCO-format annotation file with images and objects."""
    try:
        read_coco(path)
    except ConfigError:
        return False
    return True


def annotation_file(cfg: Config, split: str) -> tuple[Path, Path]:
    """Return the annotation file and the image folder of a split's first data set.

    Raises:
        ConfigError: The config names no annotation file for the split.
    """
    for leaf in leaf_datasets(_loader_dataset(cfg, f'{split}_dataloader')):
        if leaf.get('ann_file'):
            return _annotation_path(leaf), _image_folder(leaf)
    raise ConfigError(f'{split}_dataloader of the config names no annotation file')


def train_subset(cfg: Config) -> int | None:
    """Return the number of first images that a config trains on by ``indices``; None for all."""
    for leaf in leaf_datasets(_loader_dataset(cfg, 'train_dataloader')):
        indices = leaf.get('indices')
        return indices if isinstance(indices, int) and indices > 0 else None
    return None


def overlap_warnings(cfg: Config, data: HeldOutData) -> list[str]:
    """Return warnings of held-out images that should not calibrate a teacher.

    Args:
        cfg: The detector's config.
        data: The held-out data.

    Returns:
        A sentence of :func:`find_overlaps` for each, and one that says what it means.
    """
    judging = 'Images that judge a detector should not tune its teacher.'
    consequences = {
        'train_dataloader': (
            'A teacher is more often right on images it was trained on, so T comes out too small.'
        ),
        'val_dataloader': judging,
        'test_dataloader': judging,
    }
    return [f'{text} {consequences[loader]}' for loader, text in find_overlaps(cfg, data)]


def find_overlaps(cfg: Config, data: HeldOutData) -> list[tuple[str, str]]:
    """Find held-out images on which a config trains, validates or tests.

    Annotation files are compared by path and content, images by their path. Equal file names, and
    equal ids and sizes of all images, are reported as possibly the same images, because many
    collections number their images from 1. A file of the config that is missing or not in COCO
    format is skipped.

    Args:
        cfg: The detector's config.
        data: The held-out data.

    Returns:
        The name of the data loader and a sentence, for each annotation file of the config with
        such images.
    """
    own = read_coco(data.ann_file)
    found = []
    compared_paths: set[Path] = set()
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        for leaf in leaf_datasets(_loader_dataset(cfg, loader)):
            path = _annotation_path(leaf)
            if not path.is_file() or path.resolve() in compared_paths:
                continue
            compared_paths.add(path.resolve())
            overlap = _describe_overlap(own, data, path, leaf)
            if overlap:
                found.append((loader, f"{overlap} '{path}', which is in {loader}."))
    return found


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _describe_overlap(own: Mapping, data: HeldOutData, path: Path, leaf: Mapping) -> str:
    if path.resolve() == data.ann_file.resolve() or sha256_of(path) == data.sha256:
        return f"the annotation file '{data.ann_file}' is the same as"
    try:
        other = read_coco(path)
    except ConfigError:
        return ''
    own_files, other_files = (
        _image_files(own, data.images),
        _image_files(other, _image_folder(leaf)),
    )
    paths = set(other_files.values())
    count = sum(file in paths for file in own_files.values())
    if count:
        return f'{count} of {len(own_files)} images are also in'
    count = sum(name in other_files for name in own_files)
    if count:
        return f'by their file names alone, {count} of {len(own_files)} images may also be in'
    if _ids_with_size(own) <= _ids_with_size(other):
        return (
            f'unless two collections number their images alike, these {len(own_files)} images, by '
            'their ids and sizes, are also in'
        )
    return ''


def _ids_with_size(content: Mapping) -> set[tuple]:
    return {(image['id'], image.get('width'), image.get('height')) for image in content['images']}


def _image_files(content: Mapping, folder: Path) -> dict[str, Path]:
    root = folder.resolve()
    return {image['file_name']: root / image['file_name'] for image in content['images']}


def _annotation_path(leaf: Mapping) -> Path:
    return Path(leaf.get('data_root') or '', leaf.get('ann_file') or '')


def _image_folder(leaf: Mapping) -> Path:
    return Path(leaf.get('data_root') or '', (leaf.get('data_prefix') or {}).get('img') or '')


def _loader_dataset(cfg: Config, loader: str) -> Any:
    return (cfg.get(loader) or {}).get('dataset')


def _test_leaf(cfg: Config) -> Mapping:
    for loader in _LOADERS[:2]:
        for leaf in leaf_datasets(_loader_dataset(cfg, loader)):
            return leaf
    raise ConfigError('the config has no test_dataloader: it does not say how images are read')


def _dataset_class(leaf: Mapping) -> Any:
    kind = leaf.get('type')
    return DATASETS.get(kind) if isinstance(kind, str) else kind


def _configured_names(leaf: Mapping) -> tuple[str, ...] | None:
    try:
        return configured_class_names(leaf)
    # A malformed config raises AttributeError, TypeError and others, by the part that is wrong.
    except Exception as error:
        raise ConfigError(
            "cannot read the class names of the config's test data; give it "
            f'metainfo=dict(classes=(...)) ({type(error).__name__}: {error})'
        ) from error


def _check_classes(
    classes: tuple[str, ...], num_classes: int, content: Mapping, ann_file: Path
) -> None:
    if len(classes) != num_classes:
        raise ConfigError(
            f'the detector has {num_classes} classes, but its checkpoint or config names '
            f'{len(classes)}'
        )
    categories = [category['name'] for category in content['categories']]
    missing = [name for name in classes if name not in categories]
    if missing:
        raise ConfigError(
            f"'{ann_file}' has no category for {len(missing)} of the detector's classes, e.g. "
            f"'{missing[0]}': its objects would count as background"
        )


def _check_images(dataset: CocoDataset, ann_file: Path, images: Path) -> None:
    paths = [Path(dataset.get_data_info(i)['img_path']) for i in range(len(dataset))]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise ConfigError(
            f"{len(missing)} of {len(paths)} images of '{ann_file}' are not in '{images}', e.g. "
            f"'{missing[0].name}'"
        )
