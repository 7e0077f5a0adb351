"""Class names of a data set by label.

They may differ from ``classes`` in ``metainfo``. mmdet's COCO-format data sets number labels in the
order of the annotation file's categories, whatever the order in ``metainfo``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmdet.registry import DATASETS
from mmengine.dataset import BaseDataset
from mmengine.fileio import load
from mmengine.logging import print_log

from calkd_det.errors import ConfigError
from calkd_det.teachers.categories import read_categories

_SHOWN_NAMES = 20

Names = tuple[str, ...]


def dataset_class_names(dataset: Any) -> Names | None:
    """Return the class names of a built data set by label.

    The data sets within wrappers such as ``ConcatDataset`` and ``RepeatDataset`` are read. Where
    ``metainfo`` has another order than the labels, a warning names both.

    Args:
        dataset: A data set of mmdet, mmengine or torch, or another one with ``metainfo``.

    Returns:
        The name of label c at index c; None if the names are unknown.

    Raises:
        ConfigError: The annotation file lacks a class of ``metainfo`` so that later labels shift,
            or the parts of a ``ConcatDataset`` number their classes differently.
    """
    parts = getattr(dataset, 'datasets', None)
    if isinstance(parts, (list, tuple)):
        return common_names((_describe(part), dataset_class_names(part)) for part in parts)
    inner = getattr(dataset, 'dataset', None)
    if inner is not None:
        return dataset_class_names(inner)
    names = labelled_names(dataset)
    names = _check_order(dataset, _metainfo_names(dataset), names)
    things = (getattr(dataset, 'metainfo', None) or {}).get('thing_classes')
    if not (names and things):
        return names
    # The last labels of a panoptic data set are stuff classes, which have no boxes.
    return names[: 1 + max((i for i, name in enumerate(names) if name in things), default=-1)]


def configured_class_names(dataset: Any) -> Names | None:
    """Return the class names in the config of a data set, read as mmengine reads them.

    The data set is not built, so they are in the order of ``metainfo``. A string is the path of a
    file with one name on each line, or else the name of the only class.

    Args:
        dataset: Config of a data set or of a wrapper.

    Raises:
        ConfigError: The parts of a ``ConcatDataset`` have different classes.
    """
    if not isinstance(dataset, Mapping):
        return None
    if isinstance(dataset.get('datasets'), (list, tuple)):
        return common_names(
            (f'part {number} of datasets', configured_class_names(part))
            for number, part in enumerate(dataset['datasets'])
        )
    if 'dataset' in dataset:
        return configured_class_names(dataset['dataset'])
    kind = dataset.get('type')
    cls = DATASETS.get(kind) if isinstance(kind, str) else kind
    if not (isinstance(cls, type) and issubclass(cls, BaseDataset)):
        cls = BaseDataset
    return meta_class_names(cls._load_metainfo(dataset.get('metainfo')))


def meta_class_names(meta: Any) -> Names | None:
    """Return the ``classes`` of a data set's meta information, as ``metainfo`` gives them.

    Args:
        meta: A dict; or a list of dicts, which mmdet's ``ConcatDataset`` has where its parts
            differ in any key.

    Returns:
        The names; None if there are none.

    Raises:
        ConfigError: Dicts of a list name their classes differently.
    """
    if isinstance(meta, (list, tuple)):
        return common_names(
            (f'part {number}', meta_class_names(part)) for number, part in enumerate(meta)
        )
    classes = meta.get('classes') if isinstance(meta, Mapping) else None
    if classes is None:
        return None
    return (classes,) if isinstance(classes, str) else tuple(classes)


def common_names(parts: Iterable[tuple[str, Names | None]]) -> Names | None:
    """Return the class names that the parts of a data set have in common.

    A part may have fewer classes than another, as long as each label has one name.

    Args:
        parts: For each part, how a message names it and its class names by label, None if unknown.

    Raises:
        ConfigError: Two parts call one label differently.
    """
    known = [(who, names) for who, names in parts if names is not None]
    if not known:
        return None
    longest = max(known, key=lambda part: len(part[1]))
    for who, names in known:
        if names != longest[1][: len(names)]:
            label = _first_difference(names, longest[1])
            raise ConfigError(
                f'{longest[0]} and {who} number their classes differently: label {label} is '
                f"'{longest[1][label]}' in the one and '{names[label]}' in the other. Their labels "
                'are (in order) '
                f'{_listed(longest[1], label)}; and {_listed(names, label)}. Give both the same '
                'classes in the same order: COCO-format data sets take that of the categories in '
                'their annotation files'
            )
    return longest[1]


def labelled_names(dataset: Any) -> Names | None:
    """Return the class names by label of a single data set, whatever its ``metainfo`` says.

    Args:
        dataset: A built data set that wraps no other.

    Returns:
        The name of label c at index c; None if the names are unknown. They are those of
        ``metainfo`` where the data set numbers its labels by it.
    """
    # With lazy_init a data set reads its file, and numbers its labels, only here.
    if getattr(dataset, '_fully_initialized', True) is False:
        dataset.full_init()
    if hasattr(dataset, 'cat_ids'):  # COCO, its kin, LVIS, videos
        return _category_names(dataset)
    label_map = getattr(dataset, 'label_map', None)
    if isinstance(label_map, Mapping):  # ODVG
        return tuple(str(label_map[label]) for label in sorted(label_map, key=int))
    cat2label = getattr(dataset, 'cat2label', None)
    if isinstance(cat2label, Mapping):  # XML: VOC, WIDERFace
        return tuple(sorted(cat2label, key=cat2label.get))
    if getattr(type(dataset), 'load_data_list', None) is BaseDataset.load_data_list:
        # The file holds labels and their names. metainfo overrides the names, not the labels.
        return meta_class_names(load(dataset.ann_file).get('metainfo')) or _metainfo_names(dataset)
    return _metainfo_names(dataset)  # CrowdHuman, OpenImages, DSDL, V3Det, your own


def _category_names(dataset: Any) -> Names | None:
    """Return the names of a data set's categories in the order of its labels."""
    try:
        # The data set itself keeps only the ids of the categories.
        categories = read_categories(dataset.ann_file, getattr(dataset, 'backend_args', None))
        by_id = {category['id']: category for category in categories}
        numbered = [by_id[category_id] for category_id in dataset.cat_ids]
    except (AttributeError, KeyError, OSError, ValueError) as error:
        print_log(
            f'{_describe(dataset)}: the order of its labels cannot be read '
            f'({type(error).__name__}: {error}). It is taken to be that of metainfo.',
            logger='current',
            level=logging.WARNING,
        )
        return _metainfo_names(dataset)
    return tuple(str(category['name']) for category in numbered)


def _metainfo_names(dataset: Any) -> Names | None:
    return meta_class_names(getattr(dataset, 'metainfo', None))


def _check_order(dataset: Any, claimed: Names | None, names: Names | None) -> Names | None:
    """Compare the classes of ``metainfo`` with those of the labels, and return the latter."""
    if not claimed or names is None or names == claimed:
        return names
    lacking = [name for name in claimed if name not in names]
    if lacking and names == claimed[: len(names)]:
        _warn(
            f'{_describe(dataset)} has no category for {len(lacking)} of the classes of metainfo: '
            f'{_listed(lacking)}. No object of it will ever be seen in training.'
        )
        return claimed
    if lacking and set(names) <= set(claimed):
        raise ConfigError(
            f'{_describe(dataset)} has no category for {len(lacking)} of the classes of its '
            f'metainfo: {_listed(lacking)}. mmdet numbers labels in the order of the categories '
            'that the file has, so that its labels are '
            f'{_listed(names) or "none"}, and not those of metainfo. Write '
            f'metainfo=dict(classes=...) with these {len(names)} classes, or add the category'
        )
    if isinstance(_raw_classes(dataset), str) and len(names) > 1 and set(names) == set(claimed[0]):
        raise ConfigError(
            f"{_describe(dataset)}: the classes of its metainfo are the text '{claimed[0]}', which "
            f'it takes for {len(names)} classes of a letter each: write '
            f"metainfo=dict(classes=('{claimed[0]}',))"
        )
    start = _first_difference(names, claimed)
    _warn(
        f'{_describe(dataset)} numbers its labels in another order than metainfo names the '
        f'classes. Labels from {start} on: {_listed(names, start)}. metainfo from {start} on: '
        f'{_listed(claimed, start)}. The classes of the teacher are matched to the labels. Give '
        'metainfo the order of the labels: checkpoints and class-wise figures name classes by it.'
    )
    return names


def _raw_classes(dataset: Any) -> Any:
    return (getattr(dataset, 'metainfo', None) or {}).get('classes')


def _describe(dataset: Any) -> str:
    """Return how a message names a data set."""
    name = type(dataset).__name__
    if isinstance(getattr(dataset, 'datasets', None), (list, tuple)):
        return f'{name} of {len(dataset.datasets)} parts'
    if getattr(dataset, 'dataset', None) is not None:
        return f'{name} of {_describe(dataset.dataset)}'
    ann_file = getattr(dataset, 'ann_file', None)
    return f"{name} '{ann_file}'" if ann_file else name


def _first_difference(first: Sequence[str], second: Sequence[str]) -> int:
    pairs = list(zip(first, second))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))


def _listed(names: Sequence[str], start: int = 0) -> str:
    shown = names[start : start + _SHOWN_NAMES]
    return ', '.join(shown) + (', ...' if len(names) > start + _SHOWN_NAMES else '')


def _warn(sentence: str) -> None:
    print_log(sentence, logger='current', level=logging.WARNING)
