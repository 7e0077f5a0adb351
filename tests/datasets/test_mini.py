from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import struct
import sys
from itertools import combinations
from pathlib import Path

import cv2
import helpers
import numpy as np
import pytest

from calkd_det.datasets import write_mini_dataset
from calkd_det.datasets.items import (
    DIGIT_CLASSES,
    FASHION_CLASSES,
    SPLITS,
    load_items,
    read_idx,
    split_pool,
)
from calkd_det.datasets.mini import DEFAULT_IMAGE_SIZE, ID_STRIDE
from calkd_det.datasets.scenes import (
    MAX_OVERLAP,
    MIN_ALPHA,
    blend,
    draw_scene,
    find_place,
    load_photos,
    overlap,
    warp_item,
)
from calkd_det.errors import ConfigError

FEW = {'train': 12, 'calibration': 5, 'val': 7}
PER_CLASS = 10


def file_hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob('*')
        if path.is_file()
    }


def read_coco(root: Path, split: str) -> dict:
    return json.loads((root / 'annotations' / f'{split}.json').read_text())


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f'>{array.ndim}I', *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_fashion(folder: Path, per_class: int = PER_CLASS) -> Path:
    """Write the four Fashion-MNIST files, each picture with another bright rectangle."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for part in ('train', 't10k'):
        labels = np.tile(np.arange(10), per_class)
        images = np.zeros((len(labels), 28, 28), np.uint8)
        for image in images:
            top, left = rng.integers(2, 8, 2)
            image[top:26, left:26] = rng.integers(90, 255, (26 - top, 26 - left))
        (folder / f'{part}-images-idx3-ubyte.gz').write_bytes(gzip.compress(idx_bytes(images)))
        (folder / f'{part}-labels-idx1-ubyte').write_bytes(idx_bytes(labels))
    return folder


@pytest.fixture(scope='module')
def digits():
    return load_items('digits')


@pytest.fixture(scope='module')
def photos():
    return load_photos()


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    return write_mini_dataset(tmp_path_factory.mktemp('mini') / 'a', num_images=FEW)


def test_same_arguments_give_the_same_bytes(built, tmp_path):
    again = write_mini_dataset(tmp_path / 'b', num_images=FEW)
    assert file_hashes(again.root) == file_hashes(built.root)
    assert len(file_hashes(built.root)) == sum(FEW.values()) + len(SPLITS) + 2


def test_another_seed_gives_other_images(built, tmp_path):
    other = write_mini_dataset(tmp_path, num_images=FEW, seed=1)
    ours, theirs = file_hashes(built.root), file_hashes(other.root)
    assert all(ours[name] != theirs[name] for name in ours)


def test_more_val_images_change_no_other_image(built, tmp_path):
    more = write_mini_dataset(tmp_path, num_images=FEW | {'val': 9})
    ours, theirs = file_hashes(built.root), file_hashes(more.root)
    kept = {name for name in ours if name.endswith('.jpg') or name == 'annotations/train.json'}
    assert {name: theirs[name] for name in kept} == {name: ours[name] for name in kept}
    assert theirs['annotations/val.json'] != ours['annotations/val.json']


def test_pools_are_disjoint_whole_and_stratified(digits):
    pools = split_pool(digits.labels, seed=3)
    everyone = np.concatenate([pools[split] for split in SPLITS])
    np.testing.assert_array_equal(np.sort(everyone), np.arange(len(digits.labels)))
    for split, share in zip(SPLITS, (0.70, 0.15, 0.15)):
        of_class = np.bincount(digits.labels[pools[split]]) / np.bincount(digits.labels)
        np.testing.assert_allclose(of_class, share, atol=0.01)


def test_pools_depend_on_the_seed_only(digits):
    first, same, other = (split_pool(digits.labels, seed)['val'] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


def test_too_few_items_of_a_class_are_refused():
    with pytest.raises(ConfigError, match='class 1 has only 2 items'):
        split_pool(np.array([0] * 20 + [1] * 2), seed=0)


def test_written_items_come_from_their_own_pool(built, digits):
    pools = split_pool(digits.labels, seed=0)
    for split in SPLITS:
        for annotation in read_coco(built.root, split)['annotations']:
            assert annotation['item_id'] in pools[split]
            assert digits.labels[annotation['item_id']] == annotation['category_id'] - 1


def test_image_ids_are_unique_across_splits(built):
    ids = [image['id'] for split in SPLITS for image in read_coco(built.root, split)['images']]
    assert len(ids) == sum(FEW.values())
    assert len(set(ids)) == len(ids)


def test_annotations_describe_the_files(built):
    for split in SPLITS:
        coco = read_coco(built.root, split)
        assert len(coco['images']) == FEW[split] == built.num_images[split]
        assert len(coco['annotations']) == sum(built.boxes_per_class[split].values())
        for image in coco['images']:
            picture = cv2.imread(str(built.root / split / image['file_name']))
            assert (
                picture.shape
                == (image['height'], image['width'], 3)
                == (DEFAULT_IMAGE_SIZE, DEFAULT_IMAGE_SIZE, 3)
            )
        assert min(annotation['id'] for annotation in coco['annotations']) == 1
        names = [category['name'] for category in coco['categories']]
        assert tuple(names) == built.classes == DIGIT_CLASSES
        assert [category['id'] for category in coco['categories']] == list(range(1, 11))


def test_sources_and_licences_are_named(built):
    coco = read_coco(built.root, 'train')
    text = json.dumps(coco['info']['sources'])
    for name in ('danielbuechele', 'vultilion', 'UCI', 'scikit-learn'):
        assert name in text
    licences = {entry['id'] for entry in coco['licenses']}
    assert {source['license'] for source in coco['info']['sources']} == licences


@pytest.mark.parametrize('source', ['digits', 'fashion-mnist'])
def test_boxes_are_exactly_what_blending_changed(source, digits, photos, tmp_path):
    items = digits
    if source == 'fashion-mnist':
        items = load_items(source, write_fashion(tmp_path))
    everything = np.arange(len(items.labels))
    seen = 0
    for seed in range(20):
        scene = draw_scene(np.random.default_rng(seed), items, everything, photos, 160)
        changed = (scene.image != scene.background).any(axis=2)
        painted = np.zeros_like(changed)
        for box in scene.boxes:
            x, y, w, h = box.xywh
            assert min(x, y) >= 0
            assert max(x + w, y + h) <= 160
            inside = changed[y : y + h, x : x + w]
            for border in (inside[:2], inside[-2:], inside[:, :2], inside[:, -2:]):
                assert border.any()
            painted[y : y + h, x : x + w] = True
            seen += 1
        assert not (changed & ~painted).any()
    assert seen > 40


def test_a_warped_item_touches_all_four_borders(digits):
    for image in digits.images[:50]:
        alpha, shade = warp_item(image, size=30, angle=15, textured=False)
        assert alpha.max() == 1
        assert alpha[alpha > 0].min() >= MIN_ALPHA
        assert not shade.any()
        for border in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]):
            assert border.any()


def test_an_item_is_scaled_to_its_size():
    alpha, _ = warp_item(np.full((8, 8), 255, np.uint8), size=40, angle=0, textured=False)
    assert all(abs(side - 40) <= 4 for side in alpha.shape)


def test_items_are_both_darker_and_lighter_than_their_background():
    alpha, shade = np.ones((9, 9), np.float32), np.zeros((9, 9), np.float32)
    steps = []
    for seed in range(40):
        canvas = np.full((20, 20, 3), 128, np.float32)
        blend(np.random.default_rng(seed), canvas, alpha, shade, (5, 6, 9, 9))
        steps.append(cv2.cvtColor(canvas / 255, cv2.COLOR_RGB2GRAY)[10, 10] * 255 - 128)
        canvas[6:15, 5:14] = 128
        assert (canvas == 128).all()
    assert min(np.abs(steps)) > 15
    assert 10 <= np.sum(np.array(steps) > 0) <= 30


def test_boxes_hardly_overlap(digits, photos):
    everything = np.arange(len(digits.labels))
    overlaps = []
    for seed in range(30):
        scene = draw_scene(np.random.default_rng(seed), digits, everything, photos, 96)
        overlaps += [overlap(a.xywh, b.xywh) for a, b in combinations(scene.boxes, 2)]
        assert 1 <= len(scene.boxes) <= 6
    assert 0 < max(overlaps) <= MAX_OVERLAP


def test_overlap_sees_a_small_box_inside_a_large_one():
    assert overlap((0, 0, 10, 10), (2, 2, 2, 2)) == 1
    assert overlap((0, 0, 10, 10), (5, 0, 10, 10)) == 0.5
    assert overlap((0, 0, 10, 10), (10, 0, 10, 10)) == 0
    assert overlap((0, 0, 10, 10), (20, 20, 10, 10)) == 0


def test_no_place_is_found_where_none_is_left():
    rng = np.random.default_rng(0)
    assert find_place(rng, (10, 12), 40, [(0, 0, 40, 40)]) is None
    assert find_place(rng, (10, 12), 12, [])[2:] == (12, 10)


def test_classes_are_roughly_even(digits, photos):
    # A pool with hardly any nines must not make nines rare.
    pool = np.flatnonzero((digits.labels != 9) | (np.arange(len(digits.labels)) < 30))
    labels = [
        box.label
        for seed in range(300)
        for box in draw_scene(np.random.default_rng(seed), digits, pool, photos, 160).boxes
    ]
    shares = np.bincount(labels, minlength=10) / len(labels)
    assert shares.min() > 0.07
    assert shares.max() < 0.13


def test_pycocotools_and_mmdet_load_it(built):
    from mmdet.datasets import CocoDataset
    from pycocotools.coco import COCO

    for split in SPLITS:
        coco = COCO(str(built.annotations(split)))
        dataset = CocoDataset(
            ann_file=str(built.annotations(split)),
            data_prefix={'img': str(built.root / split)},
            metainfo={'classes': DIGIT_CLASSES},
            filter_cfg={'filter_empty_gt': True},
        )
        assert len(dataset) == len(coco.imgs) == FEW[split]
        for index in range(len(dataset)):
            info = dataset.get_data_info(index)
            assert Path(info['img_path']).is_file()
            expected = coco.imgToAnns[info['img_id']]
            labels = [instance['bbox_label'] for instance in info['instances']]
            assert labels == [annotation['category_id'] - 1 for annotation in expected]


def test_running_again_does_nothing(built):
    before = {path: path.stat().st_mtime_ns for path in built.root.rglob('*')}
    again = write_mini_dataset(built.root, num_images=FEW)
    assert built.created
    assert not again.created
    assert again.boxes_per_class == built.boxes_per_class
    assert {path: path.stat().st_mtime_ns for path in built.root.rglob('*')} == before


def test_other_arguments_in_the_same_folder_are_refused(built):
    before = file_hashes(built.root)
    with pytest.raises(ConfigError, match=r'seed is 0 there but 7 was asked for.*overwrite=True'):
        write_mini_dataset(built.root, num_images=FEW, seed=7)
    assert file_hashes(built.root) == before


def test_overwrite_replaces_the_set_and_spares_other_files(tmp_path):
    write_mini_dataset(tmp_path / 'a', num_images=FEW)
    (tmp_path / 'a' / 'notes.txt').write_text('mine')
    less = FEW | {'train': 3}
    write_mini_dataset(tmp_path / 'a', num_images=less, overwrite=True)
    write_mini_dataset(tmp_path / 'b', num_images=less)
    expected = file_hashes(tmp_path / 'b')
    assert file_hashes(tmp_path / 'a') == expected | {
        'notes.txt': hashlib.sha256(b'mine').hexdigest()
    }


def test_an_interrupted_run_is_started_over(built, tmp_path):
    (tmp_path / 'train').mkdir()
    (tmp_path / 'train' / '0000001.jpg').write_bytes(b'half a')
    (tmp_path / 'train' / '0999999.jpg').write_bytes(b'of another run')
    assert write_mini_dataset(tmp_path, num_images=FEW).created
    assert file_hashes(tmp_path) == file_hashes(built.root)


@pytest.mark.parametrize('overwrite', [False, True])
def test_a_folder_of_something_else_is_left_alone(tmp_path, overwrite):
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'annotations' / 'train.json').write_text('{}')
    (tmp_path / 'annotations' / 'instances_val2017.json').write_text('{}')
    before = file_hashes(tmp_path)
    with pytest.raises(ConfigError, match=r'not a mini data set.*instances_val2017'):
        write_mini_dataset(tmp_path, num_images=FEW, overwrite=overwrite)
    assert file_hashes(tmp_path) == before


def test_a_changed_annotation_file_is_noticed(tmp_path):
    dataset = write_mini_dataset(tmp_path, num_images=FEW)
    dataset.annotations('val').write_text('{}')
    with pytest.raises(ConfigError, match=r'val\.json was changed'):
        write_mini_dataset(tmp_path, num_images=FEW)


def test_a_damaged_manifest_is_named(tmp_path):
    (tmp_path / 'mini_dataset.json').write_text('{"request"')
    with pytest.raises(ConfigError, match=r'mini_dataset\.json cannot be read'):
        write_mini_dataset(tmp_path, num_images=FEW)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'items': 'digit'}, "did you mean 'digits'"),
        ({'source': 'somewhere'}, 'source must be left out'),
        ({'num_images': {'test': 3}}, "unknown split 'test'"),
        ({'num_images': {'val': 0}}, 'num_images of val'),
        ({'num_images': {'val': ID_STRIDE}}, 'num_images of val'),
        ({'image_size': 50}, 'image_size must be at least'),
        ({'seed': -1}, 'seed must not be negative'),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        write_mini_dataset(tmp_path / 'out', **arguments)
    assert not (tmp_path / 'out').exists()


def test_the_samples_show_three_rows_of_six(built):
    picture = cv2.imread(str(built.samples))
    assert picture.shape == (3 * 362, 6 * 326 + 6, 3)
    yellow = (picture == (0, 255, 255)).all(axis=2)
    for row in range(3):
        assert yellow[row * 362 : (row + 1) * 362].any()


@pytest.fixture
def no_sklearn(monkeypatch):
    for name in [name for name in sys.modules if name.split('.')[0] == 'sklearn']:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, 'sklearn', None)
    monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)


def test_a_fashion_set_that_is_there_needs_no_sklearn(tmp_path, request):
    arguments = dict(
        items='fashion-mnist', source=write_fashion(tmp_path / 'idx'), num_images=FEW, image_size=96
    )
    write_mini_dataset(tmp_path / 'mini', **arguments)
    request.getfixturevalue('no_sklearn')
    assert not write_mini_dataset(tmp_path / 'mini', **arguments).created


@pytest.mark.parametrize('items', ['digits', 'fashion-mnist'])
def test_a_new_set_without_sklearn_is_refused_before_the_old_one_is_deleted(
    built, tmp_path, no_sklearn, items
):
    source = write_fashion(tmp_path / 'idx') if items == 'fashion-mnist' else None
    before = file_hashes(built.root)
    with pytest.raises(ConfigError, match='pip install scikit-learn'):
        write_mini_dataset(
            built.root, items=items, source=source, num_images=FEW, seed=9, overwrite=True
        )
    assert file_hashes(built.root) == before


@pytest.fixture(scope='module')
def tool():
    return helpers.load_tool('make_mini_data')


def test_the_tool_prints_a_table(tool, built, capsys):
    counts = [word for split in SPLITS for word in (f'--{split}', str(FEW[split]))]
    assert tool.main([str(built.root), *counts]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith('already there, nothing to do')
    assert lines[2].split() == ['images', '12', '5', '7']
    boxes = [str(built.boxes_per_class[split]['nine']) for split in SPLITS]
    assert ['nine', *boxes] in [line.split() for line in lines]


def test_the_tool_says_an_error_in_one_line(tool, built, capsys):
    assert tool.main([str(built.root), '--seed', '5']) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith('error: ')
    assert captured.err.count('\n') == 1
    assert captured.out == ''


@pytest.mark.parametrize('pack', [bytes, gzip.compress], ids=['plain', 'gzip'])
def test_idx_files_are_read_gzipped_or_not(tmp_path, pack):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / 'file').write_bytes(pack(idx_bytes(array)))
    np.testing.assert_array_equal(read_idx(tmp_path / 'file', ndim=3), array)


GOOD_IDX = idx_bytes(np.zeros((2, 3, 4)))
GZIPPED_IDX = gzip.compress(GOOD_IDX, mtime=0)


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (b'', 'not an IDX file'),
        (b'\0\0\x0d' + GOOD_IDX[3:], 'not an IDX file'),
        (idx_bytes(np.zeros(5)), 'not an IDX file'),
        (GOOD_IDX[:10], 'not an IDX file'),
        (GOOD_IDX[:-1], '23 values where its header says 24'),
        (GOOD_IDX + b'\0', '25 values where its header says 24'),
        (GOOD_IDX[:4] + b'\xff' * 12, 'its header says 7922'),
        (GZIPPED_IDX[:-9], 'cannot be read'),
        (GZIPPED_IDX[:12] + b'\xff\xff\xff', 'cannot be read'),
    ],
    ids=[
        'empty',
        'other-type',
        'other-dimensions',
        'cut-header',
        'cut-data',
        'more-data',
        'huge-sizes',
        'cut-gzip',
        'damaged-gzip',
    ],
)
def test_damaged_idx_files_are_named(tmp_path, data, message):
    (tmp_path / 'broken-file').write_bytes(data)
    with pytest.raises(ConfigError, match=f'broken-file.*{message}.*dataset-fashion-mnist'):
        read_idx(tmp_path / 'broken-file', ndim=3)


def test_fashion_mnist_is_built_from_a_folder(tmp_path):
    source = write_fashion(tmp_path / 'source')
    dataset = write_mini_dataset(
        tmp_path / 'out', items='fashion-mnist', source=source, num_images=FEW
    )
    assert dataset.classes == FASHION_CLASSES
    assert len(load_items('fashion-mnist', source).labels) == 2 * 10 * PER_CLASS
    licences = {entry['name'] for entry in read_coco(dataset.root, 'val')['licenses']}
    assert 'MIT License' in licences


def test_other_source_files_count_as_other_arguments(tmp_path):
    arguments = {'items': 'fashion-mnist', 'num_images': FEW}
    first, second = write_fashion(tmp_path / 'a'), write_fashion(tmp_path / 'b', per_class=11)
    write_mini_dataset(tmp_path / 'out', source=first, **arguments)
    with pytest.raises(ConfigError, match='items_sha256'):
        write_mini_dataset(tmp_path / 'out', source=second, **arguments)


def test_a_set_that_was_copied_needs_no_source(tmp_path):
    arguments = {'items': 'fashion-mnist', 'num_images': FEW}
    source = write_fashion(tmp_path / 'source')
    made = write_mini_dataset(tmp_path / 'out', source=source, **arguments)
    shutil.rmtree(source)
    found = write_mini_dataset(tmp_path / 'out', source=source, **arguments)
    assert (made.created, found.created) == (True, False)
    assert found.boxes_per_class == made.boxes_per_class
    with pytest.raises(ConfigError, match='seed is 0 there but 1 was asked for'):
        write_mini_dataset(tmp_path / 'out', source=source, seed=1, **arguments)
    with pytest.raises(ConfigError, match='is missing: install'):
        write_mini_dataset(tmp_path / 'other', source=source, **arguments)


def test_a_missing_fashion_file_is_named(tmp_path):
    (write_fashion(tmp_path) / 't10k-labels-idx1-ubyte').unlink()
    with pytest.raises(ConfigError, match=r't10k-labels-idx1-ubyte.* is missing: install'):
        load_items('fashion-mnist', tmp_path)


@pytest.mark.parametrize(
    ('name', 'array', 'message'),
    [
        ('train-labels-idx1-ubyte', np.zeros(3), 'one label from 0 to 9'),
        ('train-labels-idx1-ubyte', np.full(10 * PER_CLASS, 10), 'one label from 0 to 9'),
        ('train-images-idx3-ubyte', np.zeros((10 * PER_CLASS, 8, 8)), 'not hold 28x28'),
    ],
)
def test_fashion_files_that_do_not_fit_are_refused(tmp_path, name, array, message):
    (write_fashion(tmp_path) / name).write_bytes(idx_bytes(array))
    with pytest.raises(ConfigError, match=message):
        load_items('fashion-mnist', tmp_path)
