"""UnroundedCocoMetric beside mmdet's CocoMetric and pycocotools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.evaluation import CocoMetric
from mmdet.evaluation.metrics import coco_metric
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from calkd_det.evaluation import UnroundedCocoMetric

FIGURES = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
NUM_IMAGES = 7


@pytest.fixture
def ann_file(tmp_path: Path) -> str:
    content = dict(
        images=[dict(id=i, file_name=f'{i}.jpg', width=64, height=64) for i in range(NUM_IMAGES)],
        categories=[dict(id=1, name='cat'), dict(id=2, name='dog')],
        annotations=[
            dict(
                id=1 + i, image_id=i, category_id=1 + i % 2, bbox=[8, 8, 20, 20], area=400,
                iscrowd=0,
            )
            for i in range(NUM_IMAGES)
        ],
    )  # fmt: skip
    path = tmp_path / 'ann.json'
    path.write_text(json.dumps(content))
    return str(path)


def evaluate(cls: type, ann_file: str, *, detect: bool = True, **options: Any) -> dict[str, float]:
    metric = cls(ann_file=ann_file, **options)
    metric.dataset_meta = dict(classes=('cat', 'dog'))
    samples = []
    for i in range(NUM_IMAGES):
        shift = 1.5 * i
        boxes = torch.tensor([[8 + shift, 8.0, 28 + shift, 28.0]] if detect else []).reshape(-1, 4)
        predictions = dict(
            bboxes=boxes,
            scores=torch.full((len(boxes),), 0.9 - 0.1 * i),
            labels=torch.full((len(boxes),), i % 2, dtype=torch.long),
        )
        samples.append(dict(pred_instances=predictions, img_id=i, ori_shape=(64, 64)))
    metric.process({}, samples)
    return metric.evaluate(NUM_IMAGES)


def test_it_is_cocometric_without_the_rounding(ann_file: str, tmp_path: Path) -> None:
    rounded = evaluate(CocoMetric, ann_file)
    full = evaluate(UnroundedCocoMetric, ann_file, outfile_prefix=str(tmp_path / 'found'))
    assert set(rounded) == set(full) == {f'coco/bbox_{name}' for name in FIGURES}
    assert rounded == {key: round(value, 3) for key, value in full.items()}
    truth = COCO(ann_file)
    expected = COCOeval(truth, truth.loadRes(str(tmp_path / 'found.bbox.json')), 'bbox')
    expected.evaluate()
    expected.accumulate()
    expected.summarize()
    assert list(full.values()) == expected.stats[:6].tolist()
    assert full['coco/bbox_mAP'] != rounded['coco/bbox_mAP']
    # mmdet's own module is as it was.
    assert coco_metric.COCOeval.__name__ == 'COCOeval'


def test_only_the_figures_that_are_wanted_are_given(ann_file: str) -> None:
    found = evaluate(UnroundedCocoMetric, ann_file, metric_items=['mAP_50', 'AR@100'])
    rounded = evaluate(CocoMetric, ann_file, metric_items=['mAP_50', 'AR@100'])
    assert found == {
        **rounded,
        'coco/bbox_mAP_50': pytest.approx(rounded['coco/bbox_mAP_50'], abs=6e-4),
    }


def test_where_nothing_is_detected_the_figures_are_zero(ann_file: str) -> None:
    assert evaluate(CocoMetric, ann_file, detect=False) == {}
    found = evaluate(UnroundedCocoMetric, ann_file, detect=False)
    assert found == dict.fromkeys((f'coco/bbox_{name}' for name in FIGURES), 0.0)
