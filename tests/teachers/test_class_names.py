"""Class names by label: of data sets as mmdet builds them, of their configs, and under a Runner."""

from __future__ import annotations

import csv
import json
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from mmdet.datasets import (
    BaseDetDataset,
    BaseVideoDataset,
    CityscapesDataset,
    CocoDataset,
    CocoPanopticDataset,
    CrowdHumanDataset,
    LVISV1Dataset,
    Objects365V1Dataset,
    ODVGDataset,
    OpenImagesDataset,
    VOCDataset,
    XMLDataset,
)
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from torch.utils.data import Dataset, Subset

from calkd_det.errors import ConfigError
from calkd_det.teachers.class_names import (
    configured_class_names,
    dataset_class_names,
    labelled_names,
    meta_class_names,
)

FILE_ORDER = ('person', 'bicycle', 'car')
OTHER_ORDER = ('car', 'person', 'bicycle')


def write_coco(
    path: Path, categories: Sequence[str] = FILE_ORDER, *, ids: Sequence[int] | None = None
) -> str:
    """Write an annotation file of one image with an object of each category."""
    ids = ids or range(1, len(categories) + 1)
    annotations = [
        dict(
            id=number,
            image_id=1,
            category_id=category,
            bbox=[0, 0, 30, 30],
            area=900,
            iscrowd=0,
            instance_id=number,
        )
        for number, category in enumerate(ids, 1)
    ]
    content = dict(
        images=[
            dict(
                id=1,
                file_name='a.png',
                coco_url='https://example.com/train/a.png',
                width=96,
                height=96,
                video_id=1,
                frame_id=0,
            )
        ],
        annotations=annotations,
        categories=[dict(id=i, name=name) for i, name in zip(ids, categories)],
        videos=[dict(id=1, name='a')],
    )
    path.write_text(json.dumps(content))
    return str(path)


def coco(ann_file: str, classes: Any = FILE_ORDER, cls: type = CocoDataset, **more: Any) -> Any:
    metainfo = None if classes is None else dict(classes=classes)
    prefix = dict(img='')
    return cls(ann_file=ann_file, metainfo=metainfo, data_prefix=prefix, pipeline=[], **more)


def objects(dataset: Any) -> list[dict]:
    info = dataset.get_data_info(0)
    return (info['images'][0] if 'images' in info else info)['instances']


@pytest.fixture
def warnings(tmp_path: Path) -> Any:
    """What is logged as a warning by this project."""
    log = tmp_path / 'log.txt'
    logger = MMLogger.get_instance(tmp_path.name, log_file=str(log), log_level='WARNING')

    def read() -> list[str]:
        for handler in logger.handlers:
            handler.flush()
        return [line for line in log.read_text().splitlines() if 'labels' in line or 'cat' in line]

    return read


@pytest.mark.parametrize(
    'cls', [CocoDataset, CityscapesDataset, Objects365V1Dataset, BaseVideoDataset]
)
def test_coco_numbers_labels_in_the_order_of_the_file(
    cls: type, tmp_path: Path, warnings: Any
) -> None:
    dataset = coco(write_coco(tmp_path / 'a.json'), OTHER_ORDER, cls)
    names = dataset_class_names(dataset)
    assert names == FILE_ORDER
    # The objects of the file are of the categories in their order.
    assert [names[one['bbox_label']] for one in objects(dataset)] == list(FILE_ORDER)
    (warning,) = warnings()
    assert 'Labels from 0 on: person, bicycle, car. metainfo from 0 on: car, person' in warning


def test_the_same_order_is_not_told(tmp_path: Path, warnings: Any) -> None:
    assert dataset_class_names(coco(write_coco(tmp_path / 'a.json'))) == FILE_ORDER
    assert warnings() == []


def test_objects365_numbers_by_id(tmp_path: Path) -> None:
    path = write_coco(tmp_path / 'a.json', FILE_ORDER, ids=(7, 9, 3))
    dataset = coco(path, FILE_ORDER, Objects365V1Dataset)
    assert dataset_class_names(dataset) == ('car', 'person', 'bicycle')
    assert dataset_class_names(coco(path)) == FILE_ORDER


def test_only_the_classes_of_metainfo_are_numbered(tmp_path: Path) -> None:
    dataset = coco(write_coco(tmp_path / 'a.json'), ('car', 'person'))
    assert dataset_class_names(dataset) == ('person', 'car')


def test_lvis_numbers_every_category_whatever_metainfo_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: Any
) -> None:
    package = ModuleType('lvis')
    package.LVIS = COCO  # which mmdet gives the same interface
    monkeypatch.setitem(sys.modules, 'lvis', package)
    dataset = coco(write_coco(tmp_path / 'a.json'), ('car', 'bicycle'), LVISV1Dataset)
    assert [one['bbox_label'] for one in objects(dataset)] == [0, 1, 2]
    assert dataset_class_names(dataset) == FILE_ORDER
    assert len(warnings()) == 1


def test_panoptic_labels_of_things_alone_are_of_boxes(tmp_path: Path) -> None:
    content = json.loads(Path(write_coco(tmp_path / 'a.json', (*FILE_ORDER, 'sky'))).read_text())
    for category in content['categories']:
        category['isthing'] = int(category['name'] != 'sky')
    for annotation in content['annotations']:
        annotation['segments_info'] = []
    path = tmp_path / 'panoptic.json'
    path.write_text(json.dumps(content))
    dataset = CocoPanopticDataset(
        ann_file=str(path),
        metainfo=dict(
            classes=('sky', *OTHER_ORDER), thing_classes=OTHER_ORDER, stuff_classes=('sky',)
        ),
        data_prefix=dict(img='', ann='', seg=''),
        pipeline=[],
    )
    assert dataset_class_names(dataset) == FILE_ORDER


@pytest.mark.parametrize('lacking', [('horse', 'person', 'car'), ('person', 'horse', 'car')])
def test_a_class_that_the_file_lacks_is_named(lacking: tuple, tmp_path: Path) -> None:
    dataset = coco(write_coco(tmp_path / 'a.json'), lacking)
    with pytest.raises(ConfigError, match=r'no category for 1 .* metainfo: horse\. .* person, car'):
        dataset_class_names(dataset)


def test_a_last_class_that_the_file_lacks_shifts_nothing(tmp_path: Path, warnings: Any) -> None:
    classes = (*FILE_ORDER, 'horse')
    assert dataset_class_names(coco(write_coco(tmp_path / 'a.json'), classes)) == classes
    (warning,) = warnings()
    assert 'no category for 1 of the classes of metainfo: horse' in warning


def test_forgotten_classes_are_an_error(tmp_path: Path) -> None:
    path = write_coco(tmp_path / 'a.json', ('cat', 'person'))
    with pytest.raises(ConfigError, match=r'no category for 78 .* its labels are cat, person'):
        dataset_class_names(coco(path, None))


def test_one_class_as_a_text(tmp_path: Path) -> None:
    path = write_coco(tmp_path / 'a.json')
    dataset = coco(path, 'bicycle')
    assert dataset_class_names(dataset) == ('bicycle',)
    assert [one['bbox_label'] for one in objects(dataset)] == [0]
    names = tmp_path / 'names.txt'
    names.write_text('car\nperson\n')
    assert dataset_class_names(coco(path, str(names))) == ('person', 'car')


def test_a_text_that_holds_the_name_of_another_category(tmp_path: Path, warnings: Any) -> None:
    # pycocotools looks for the names of categories in it.
    dataset = coco(write_coco(tmp_path / 'a.json', ('dog', 'hot dog', 'cat')), 'hot dog')
    assert {one['bbox_label'] for one in objects(dataset)} == {0, 1}
    assert dataset_class_names(dataset) == ('dog', 'hot dog')
    assert len(warnings()) == 1


# How a ConcatDataset is written: by mmdet's, whose metainfo may be a list, or by mmengine's.
CONCATS = ['ConcatDataset', 'mmengine.ConcatDataset']


@pytest.mark.parametrize('concat', CONCATS)
def test_wrappers_are_looked_through(concat: str, tmp_path: Path) -> None:
    leaf = dict(
        type='CocoDataset',
        ann_file=write_coco(tmp_path / 'a.json'),
        metainfo=dict(classes=OTHER_ORDER),
        data_prefix=dict(img=''),
        pipeline=[],
    )
    for wrapped in (
        dict(type='RepeatDataset', times=2, dataset=leaf),
        dict(type='ClassBalancedDataset', oversample_thr=1e-3, dataset=leaf),
        dict(type='MultiImageMixDataset', pipeline=[], dataset=leaf),
        dict(type=concat, datasets=[leaf, leaf]),
        dict(
            type='RepeatDataset',
            times=2,
            dataset=dict(type=concat, datasets=[leaf, leaf, dict(leaf, ann_file=leaf['ann_file'])]),
        ),
    ):
        dataset = DATASETS.build(ConfigDict(wrapped))
        assert dataset_class_names(dataset) == FILE_ORDER
        assert configured_class_names(wrapped) == OTHER_ORDER
        assert dataset_class_names(Subset(dataset, [0])) == FILE_ORDER


def test_parts_that_differ_in_other_keys_have_their_classes_in_common(tmp_path: Path) -> None:
    path = write_coco(tmp_path / 'a.json')
    parts = [
        dict(
            type='CocoDataset', ann_file=path, metainfo=meta, data_prefix=dict(img=''), pipeline=[]
        )
        for meta in (
            dict(classes=FILE_ORDER),
            dict(classes=FILE_ORDER, palette=[(0, 0, 0)] * 3),
            dict(classes=OTHER_ORDER),
        )
    ]
    dataset = DATASETS.build(ConfigDict(type='ConcatDataset', datasets=parts))
    assert isinstance(dataset.metainfo, list)
    assert dataset_class_names(dataset) == FILE_ORDER
    assert meta_class_names(dataset.metainfo[:2]) == FILE_ORDER


def test_a_part_without_the_last_classes_agrees(tmp_path: Path) -> None:
    parts = [coco(write_coco(tmp_path / f'{n}.json', FILE_ORDER[:n]), FILE_ORDER) for n in (2, 3)]
    dataset = DATASETS.build(ConfigDict(type='ConcatDataset', datasets=parts))
    assert dataset_class_names(dataset) == FILE_ORDER


def test_parts_that_number_differently_are_named(tmp_path: Path) -> None:
    parts = [
        coco(write_coco(tmp_path / f'{order[0]}.json', order))
        for order in (FILE_ORDER, OTHER_ORDER)
    ]
    dataset = DATASETS.build(ConfigDict(type='ConcatDataset', datasets=parts))
    message = (
        r"CocoDataset '\S*person\.json' and CocoDataset '\S*car\.json' number .*: label 0 is "
        r"'person' in the one and 'car' in the other"
    )
    with pytest.raises(ConfigError, match=message):
        dataset_class_names(dataset)
    metas = [dict(classes=FILE_ORDER), dict(classes=OTHER_ORDER)]
    with pytest.raises(ConfigError, match='part 0 and part 1 number their classes differently'):
        meta_class_names(metas)


def test_a_data_set_that_has_not_read_its_file_yet(tmp_path: Path) -> None:
    dataset = coco(write_coco(tmp_path / 'a.json'), OTHER_ORDER, lazy_init=True)
    assert dataset_class_names(dataset) == FILE_ORDER


def write_voc(root: Path, names: Sequence[str]) -> None:
    (root / 'Annotations').mkdir()
    (root / 'list.txt').write_text('a\n')
    box = '<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>30</xmax><ymax>30</ymax></bndbox>'
    found = ''.join(f'<object><name>{name}</name>{box}</object>' for name in names)
    size = '<size><width>96</width><height>96</height></size>'
    (root / 'Annotations/a.xml').write_text(f'<annotation>{size}{found}</annotation>')


@pytest.mark.parametrize('cls', [XMLDataset, VOCDataset])
def test_xml_numbers_labels_in_the_order_of_metainfo(
    cls: type, tmp_path: Path, warnings: Any
) -> None:
    write_voc(tmp_path, FILE_ORDER)
    dataset = cls(
        ann_file=str(tmp_path / 'list.txt'),
        data_prefix=dict(sub_data_root=str(tmp_path)),
        metainfo=dict(classes=OTHER_ORDER),
    )
    names = dataset_class_names(dataset)
    assert names == OTHER_ORDER
    assert [names[one['bbox_label']] for one in objects(dataset)] == list(FILE_ORDER)
    assert warnings() == []


def test_xml_takes_a_text_for_letters(tmp_path: Path) -> None:
    write_voc(tmp_path, ['cat'])
    dataset = XMLDataset(
        ann_file=str(tmp_path / 'list.txt'),
        data_prefix=dict(sub_data_root=str(tmp_path)),
        metainfo=dict(classes='dog'),
    )
    with pytest.raises(ConfigError, match=r"3 classes of a letter each: .*classes=\('dog',\)"):
        dataset_class_names(dataset)


def test_crowdhuman_numbers_labels_in_the_order_of_metainfo(tmp_path: Path) -> None:
    person = dict(tag='person', fbox=[0, 0, 9, 9], hbox=[0, 0, 9, 9], vbox=[0, 0, 9, 9])
    lines = [dict(ID='a', gtboxes=[person, dict(person, tag='mask')])]
    (tmp_path / 'annotation_train.odgt').write_text('\n'.join(map(json.dumps, lines)))
    (tmp_path / 'id_hw_train.json').write_text(json.dumps(dict(a=[96, 96])))
    dataset = CrowdHumanDataset(
        data_root=str(tmp_path),
        ann_file='annotation_train.odgt',
        extra_ann_file=str(tmp_path / 'id_hw_train.json'),
        metainfo=dict(classes=('mask', 'person')),
        data_prefix=dict(img=''),
    )
    names = dataset_class_names(dataset)
    assert names == ('mask', 'person')
    assert [names[one['bbox_label']] for one in objects(dataset)] == ['person', 'mask']


def test_openimages_takes_its_own_file_of_labels(tmp_path: Path) -> None:
    def write(name: str, rows: list) -> str:
        with (tmp_path / name).open('w', newline='') as file:
            csv.writer(file).writerows(rows)
        return str(tmp_path / name)

    head = [['ImageID', 'Source', 'LabelName']]
    (tmp_path / 'meta.pkl').write_bytes(
        pickle.dumps([dict(filename='a.jpg', ori_shape=(96, 96, 3))])
    )
    (tmp_path / 'tree.json').write_text(
        json.dumps(dict(LabelName='/m/0', Subcategory=[dict(LabelName='/m/1')]))
    )
    dataset = OpenImagesDataset(
        ann_file=write('boxes.csv', [*head, ['a', '', '/m/2', 1, 0, 1, 0, 1, 0, 0, 0, 0, 0]]),
        label_file=write('labels.csv', [['/m/1', 'car'], ['/m/2', 'person']]),
        hierarchy_file=str(tmp_path / 'tree.json'),
        meta_file=str(tmp_path / 'meta.pkl'),
        metainfo=dict(classes=FILE_ORDER),
        data_prefix=dict(img=''),
    )
    names = dataset_class_names(dataset)
    assert names == ('car', 'person')
    assert names[objects(dataset)[0]['bbox_label']] == 'person'


def test_odvg_takes_its_own_file_of_labels(tmp_path: Path) -> None:
    (tmp_path / 'labels.json').write_text(json.dumps({'1': 'person', '0': 'car'}))
    (tmp_path / 'a.jsonl').write_text(
        json.dumps(dict(filename='a.jpg', height=96, width=96, detection=dict(instances=[])))
    )
    dataset = ODVGDataset(
        data_root=str(tmp_path),
        ann_file='a.jsonl',
        label_map_file='labels.json',
        data_prefix=dict(img=''),
        return_classes=True,
    )
    assert dataset_class_names(dataset) == ('car', 'person')


def test_mmengines_own_format_names_its_labels_in_the_file(tmp_path: Path, warnings: Any) -> None:
    path = tmp_path / 'a.json'
    entry = dict(img_path='a.png', height=96, width=96, instances=[])
    path.write_text(json.dumps(dict(metainfo=dict(classes=FILE_ORDER), data_list=[entry])))
    dataset = BaseDetDataset(ann_file=str(path), metainfo=dict(classes=OTHER_ORDER))
    assert dataset.metainfo['classes'] == OTHER_ORDER
    assert dataset_class_names(dataset) == FILE_ORDER
    assert len(warnings()) == 1
    path.write_text(json.dumps(dict(metainfo={}, data_list=[entry])))
    dataset = BaseDetDataset(ann_file=str(path), metainfo=dict(classes=OTHER_ORDER))
    assert dataset_class_names(dataset) == OTHER_ORDER


class Own(Dataset):
    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


def test_data_sets_of_ones_own(warnings: Any) -> None:
    assert dataset_class_names(Own()) is None
    assert dataset_class_names(Own(metainfo=dict(other=1))) is None
    assert dataset_class_names(Own(metainfo=dict(classes=list(OTHER_ORDER)))) == OTHER_ORDER
    assert warnings() == []
    # One that numbers categories, but of no annotation file.
    own = Own(metainfo=dict(classes=OTHER_ORDER), cat_ids=[1, 2, 3], ann_file='none.json')
    assert labelled_names(own) == OTHER_ORDER
    (warning,) = warnings()
    assert 'the order of its labels cannot be read (FileNotFoundError' in warning
