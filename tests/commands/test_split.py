"""``calkd split``: disjoint parts of an annotation file, stratified by class."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calkd_cli.main import main
from calkd_det.commands.split import split, summary
from calkd_det.errors import CalKDError, ConfigError
from calkd_det.measurement.stratified_split import stratify

NUM_IMAGES, NUM_CLASSES = 400, 6
# Category ids with gaps, in no order.
CATEGORY_IDS = [7, 3, 90, 1, 50, 2]


def made_up(seed: int = 0) -> dict[str, Any]:
    """Return a file in COCO format with rare classes, crowds and images without objects."""
    random = np.random.default_rng(seed)
    share = np.array([0.8, 0.4, 0.2, 0.1, 0.05, 0.03])
    images = [{'id': 3 * i + 5, 'file_name': f'{i}.jpg', 'extra': [i]} for i in range(NUM_IMAGES)]
    annotations = []
    for image in images[: NUM_IMAGES * 9 // 10]:
        for label in np.flatnonzero(random.random(NUM_CLASSES) < share):
            for _ in range(random.integers(1, 4)):
                annotations.append(
                    {
                        'id': len(annotations),
                        'image_id': image['id'],
                        'category_id': CATEGORY_IDS[label],
                        'bbox': [0.1 + 0.2, 1e-7, 3.5, 12],
                        'iscrowd': int(random.random() < 0.1),
                    }
                )
    return {
        'info': {'description': 'größer'},
        'categories': [{'id': c, 'name': f'class {c}', 'more': 1} for c in CATEGORY_IDS],
        'annotations': annotations,
        'images': images,
        'licenses': [],
    }


@pytest.fixture(scope='module')
def ann_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('coco') / 'all.json'
    path.write_text(json.dumps(made_up()), 'utf-8')
    return path


def read(folder: Path, *names: str) -> list[dict[str, Any]]:
    return [json.loads((folder / f'{name}.json').read_text('utf-8')) for name in names]


def test_parts_are_disjoint_and_hold_everything_of_their_images(
    ann_file: Path, tmp_path: Path
) -> None:
    found = split(ann_file, tmp_path / 'out', dict(calibration=80, minival=120, rest=None))
    parts = read(tmp_path / 'out', 'calibration', 'minival', 'rest')
    assert [len(part['images']) for part in parts] == [80, 120, 200]
    original = json.loads(ann_file.read_text('utf-8'))
    for key in ('images', 'annotations'):
        entries = sorted((entry for part in parts for entry in part[key]), key=lambda e: e['id'])
        assert entries == original[key]
    for part in parts:
        ids = {image['id'] for image in part['images']}
        assert {annotation['image_id'] for annotation in part['annotations']} <= ids
        assert list(part) == list(original)
        for key in ('info', 'categories', 'licenses'):
            assert part[key] == original[key]
        # In the order of the original.
        assert part['images'] == [image for image in original['images'] if image['id'] in ids]
    assert found.num_left_over == found.num_orphans == 0
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
        'calibration.json',
        'minival.json',
        'rest.json',
        'split.json',
    ]


def test_the_record_has_ids_and_counts(ann_file: Path, tmp_path: Path) -> None:
    found = split(ann_file, tmp_path, dict(one=100, two=50), seed=3)
    (record,) = read(tmp_path, 'split')
    assert record['num_images_in_no_part'] == NUM_IMAGES - 150
    assert record['seed'] == 3
    for name, part in zip(('one', 'two'), read(tmp_path, 'one', 'two')):
        entry = record['parts'][name]
        assert entry['image_ids'] == [image['id'] for image in part['images']]
        for category in part['categories']:
            of_class = [a for a in part['annotations'] if a['category_id'] == category['id']]
            expected = sum(not annotation['iscrowd'] for annotation in of_class)
            assert entry['num_objects'][category['name']] == expected
        with_objects = {a['image_id'] for a in part['annotations'] if not a['iscrowd']}
        assert entry['num_images_without_objects'] == entry['num_images'] - len(with_objects)
    assert f'{NUM_IMAGES - 150} images are in no part' in summary(found)


@pytest.mark.parametrize('seed', [0, 1, 2])
@pytest.mark.parametrize('sizes', [(200, 200), (40, 360), (100, 100, 200), (1, 2, 397)])
def test_each_class_has_its_share_and_sizes_are_exact(sizes: tuple[int, ...], seed: int) -> None:
    presence = np.random.default_rng(seed).random((400, 6)) < [0.8, 0.4, 0.2, 0.1, 0.05, 0.03]
    presence[:40] = False
    part = stratify(presence, sizes, seed)
    assert np.bincount(part).tolist() == list(sizes)
    columns = np.column_stack([presence, ~presence.any(axis=1)])
    for index, size in enumerate(sizes):
        expected = columns.sum(axis=0) * size / 400
        assert np.abs(columns[part == index].sum(axis=0) - expected).max() <= 4


def test_a_random_split_is_less_even() -> None:
    presence = np.random.default_rng(0).random((400, 6)) < [0.8, 0.4, 0.2, 0.1, 0.05, 0.03]
    expected = presence.sum(axis=0) / 2

    def unevenness(part: np.ndarray) -> float:
        return float(np.abs(presence[part == 0].sum(axis=0) - expected).sum())

    random = np.mean(
        [unevenness(np.random.default_rng(seed).permutation(400) % 2) for seed in range(20)]
    )
    assert unevenness(stratify(presence, (200, 200), 0)) < random / 3


def test_small_parts_are_drawn_from_the_whole_file() -> None:
    presence = np.ones((1000, 1), dtype=bool)
    rows = np.flatnonzero(stratify(presence, (100, 900), 0) == 0)
    # The mean of 100 of 1,000 rows has a standard deviation of 27.
    assert abs(rows.mean() - 499.5) < 110
    assert rows.min() < 100
    assert rows.max() > 900


def test_the_seed_decides_the_split(ann_file: Path, tmp_path: Path) -> None:
    for name, seed in (('a', 0), ('b', 0), ('c', 1)):
        split(ann_file, tmp_path / name, dict(one=100, two=None), seed=seed)
    first, again, other = ((tmp_path / name / 'one.json').read_bytes() for name in 'abc')
    assert first == again != other


def test_annotations_of_images_that_are_not_listed_are_left_out_and_told(tmp_path: Path) -> None:
    content = made_up()
    content['annotations'][0]['image_id'] = -1
    path = tmp_path / 'all.json'
    path.write_text(json.dumps(content))
    found = split(path, tmp_path / 'out', dict(one=100, two=None))
    assert found.num_orphans == 1
    assert 'left out: 1 annotations of images that the file does not list' in summary(found)
    parts = read(tmp_path / 'out', 'one', 'two')
    assert sum(len(part['annotations']) for part in parts) == len(content['annotations']) - 1


def remove(key: str, entry: str) -> Callable[[dict], None]:
    return lambda content: content[entry][2].pop(key)


def repeat_image(content: dict) -> None:
    content['images'][1]['id'] = content['images'][0]['id']


def wrong_category(content: dict) -> None:
    content['annotations'][4]['category_id'] = 8


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (repeat_image, 'two images with the id 5'),
        (remove('id', 'images'), r"images\[2\] has no 'id'"),
        (remove('image_id', 'annotations'), r"annotations\[2\] lacks 'image_id' or"),
        (remove('name', 'categories'), r"categories\[2\] lacks 'id' or 'name'"),
        (wrong_category, r'annotations\[4\] has the category 8, which the file does not list'),
        (lambda content: content.pop('images'), 'is no COCO annotation file'),
    ],
    ids=['same-id', 'no-id', 'no-image', 'no-name', 'category', 'no-images'],
)
def test_a_wrong_file_is_refused_and_nothing_is_written(
    tmp_path: Path, change: Callable[[dict], None], message: str
) -> None:
    content = made_up()
    change(content)
    path = tmp_path / 'all.json'
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        split(path, tmp_path / 'out', dict(one=10, two=None))
    assert not (tmp_path / 'out').exists()


def calkd_split(*words: str | Path) -> int:
    """Run the command and return its exit code, also that of wrong arguments."""
    try:
        return main(['split', *map(str, words)])
    except SystemExit as end:
        return end.code


def test_the_command_prints_a_table_and_never_replaces_a_file(
    ann_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = (ann_file, '--out', tmp_path, '--parts', 'minival=150', 'minitest')
    assert calkd_split(*words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ['minival', 'minitest']
    assert lines[1].split() == ['images', '150', '250']
    assert lines[4].startswith('  class 7 ')
    assert lines[-1] == f'ids of the images: {tmp_path / "split.json"}'
    assert calkd_split(*words) == 1
    assert "minival.json' exists already" in capsys.readouterr().err
    # The file itself is in the way too.
    words = (ann_file, '--out', ann_file.parent, '--parts', 'all=150', 'other')
    assert calkd_split(*words) == 1
    assert json.loads(ann_file.read_text('utf-8')) == made_up()


@pytest.mark.parametrize(
    ('parts', 'code', 'message'),
    [
        (['a=0', 'b'], 2, 'must be a whole number >= 1'),
        (['a=x'], 2, 'must be a whole number >= 1'),
        (['a', 'b'], 2, 'at most one part can be without a number'),
        (['a=1', 'a=2'], 2, 'two parts have the same name'),
        (['split=1'], 2, 'is no name of a part'),
        (['../a=1'], 2, 'is no name of a part'),
        (['=1'], 2, 'is no name of a part'),
        (['a=400', 'b'], 1, '400 images, too few for a=400 b'),
        (['a=300', 'b=101'], 1, '400 images, too few for a=300 b=101'),
    ],
    ids=[
        'zero',
        'no-number',
        'two-rests',
        'twice',
        'record',
        'folder',
        'no-name',
        'none-left',
        'many',
    ],
)
def test_wrong_parts_are_refused(
    ann_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    parts: list[str],
    code: int,
    message: str,
) -> None:
    assert calkd_split(ann_file, '--out', tmp_path / 'out', '--parts', *parts) == code
    assert message in ' '.join(capsys.readouterr().err.split())
    assert not (tmp_path / 'out').exists()


def test_all_images_can_be_used_without_a_rest(ann_file: Path, tmp_path: Path) -> None:
    found = split(ann_file, tmp_path, dict(one=100, two=300))
    assert found.num_left_over == 0
    assert [len(part.image_ids) for part in found.parts.values()] == [100, 300]


def test_a_missing_library_is_named(
    ann_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, 'iterstrat.ml_stratifiers', None)
    with pytest.raises(CalKDError, match='pip install iterative-stratification'):
        split(ann_file, tmp_path, dict(one=100, two=None))
