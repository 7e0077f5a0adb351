"""Class names that stand in a config, in a checkpoint, or in an annotation file's categories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.datasets import VOCDataset

from calkd_det.errors import ConfigError
from calkd_det.teachers.categories import read_categories
from calkd_det.teachers.checkpoint import load_weights
from calkd_det.teachers.class_names import configured_class_names

FILE_ORDER = ('person', 'bicycle', 'car')
OTHER_ORDER = ('car', 'person', 'bicycle')


@pytest.mark.parametrize(
    ('dataset', 'names'),
    [
        (None, None),
        (dict(type='CocoDataset', metainfo=dict(classes=('a', 'b'))), ('a', 'b')),
        (dict(type='CocoDataset', metainfo=dict(classes='dog')), ('dog',)),
        (dict(type='CocoDataset', metainfo=dict(classes='names.txt')), ('cat', 'hot dog')),
        (
            dict(type='RepeatDataset', dataset=dict(metainfo=dict(classes='names.txt'))),
            ('cat', 'hot dog'),
        ),
        (dict(type='VOCDataset'), VOCDataset.METAINFO['classes']),
        (dict(type=VOCDataset), VOCDataset.METAINFO['classes']),
        (dict(type='NobodyKnows', metainfo=dict(classes=['a'])), ('a',)),
        (dict(type='NobodyKnows'), None),
    ],
)
def test_names_of_a_config_are_read_as_mmengine_reads_them(
    dataset: Any, names: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path('names.txt').write_text('cat\nhot dog\n')
    assert configured_class_names(dataset) == names


def test_parts_of_a_config_that_differ_are_named() -> None:
    parts = [dict(metainfo=dict(classes=order)) for order in (FILE_ORDER, OTHER_ORDER)]
    with pytest.raises(ConfigError, match='part 0 of datasets and part 1 of datasets number'):
        configured_class_names(dict(type='ConcatDataset', datasets=parts))


CATEGORIES = [dict(id=1, name='b'), dict(id=5, name='ä')]


@pytest.mark.parametrize(
    'content',
    [
        dict(categories=CATEGORIES, images=[]),
        dict(images=[dict(categories=[1, 2])], categories=CATEGORIES),
        dict(images=[dict(categories=[dict(id=3, name='x')])], categories=CATEGORIES),
        dict(info='a "categories": [{"id": 1, "name": "x"}] b', categories=CATEGORIES),
        dict(categories=[*CATEGORIES, *(dict(id=i, name='c' * 900) for i in range(9, 2000))]),
    ],
    ids=['first', 'a list of numbers', 'a list alike', 'a text', 'longer than the first read'],
)
@pytest.mark.parametrize('indent', [None, 2])
@pytest.mark.parametrize('ascii_only', [True, False])
def test_categories_of_a_file(
    content: dict, indent: int | None, ascii_only: bool, tmp_path: Path
) -> None:
    path = tmp_path / 'a.json'
    text = json.dumps(content, indent=indent, ensure_ascii=ascii_only)
    path.write_text(text, encoding='utf-8')
    assert read_categories(str(path)) == content['categories']


@pytest.mark.parametrize('text', ['', '{', '[]', '{}', '{"categories": [1]}', '{"categories": ['])
def test_files_without_categories(text: str, tmp_path: Path) -> None:
    path = tmp_path / 'a.json'
    path.write_text(text)
    with pytest.raises(ValueError, match=r'categories|Expecting'):
        read_categories(str(path))


@pytest.mark.parametrize(
    ('meta', 'names'),
    [
        (dict(dataset_meta=dict(classes='dog')), ('dog',)),
        (dict(dataset_meta=dict(CLASSES=['a', 'b'])), ('a', 'b')),
        (dict(CLASSES='dog'), ('dog',)),
        (dict(dataset_meta=[dict(classes=('a',)), dict(classes=('a', 'b'))]), ('a', 'b')),
        (dict(dataset_meta=[dict(classes=('a',)), dict(classes=('b',))]), None),
        (dict(dataset_meta=dict(classes=3)), None),
    ],
)
def test_names_stored_with_a_teacher(meta: dict, names: Any, tmp_path: Path) -> None:
    module = torch.nn.Linear(1, 1)
    torch.save(dict(meta=meta, state_dict=module.state_dict()), tmp_path / 'a.pth')
    assert load_weights(module, str(tmp_path / 'a.pth')) == names
