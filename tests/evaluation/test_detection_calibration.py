"""DetectionCalibration against plain float64 loops, in one and two processes, and in a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import cv2
import helpers
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.fileio import load
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from plain_calibration import (
    CATEGORY_IDS,
    CLASSES,
    annotation_file,
    data_samples,
    detections,
    evaluate,
    plain_ece,
    plain_laace,
    plain_laece,
    plain_matching,
    random_case,
)
from torchmetrics.functional.classification import binary_calibration_error

from calkd_det import config_path
from calkd_det.calibration.reliability import reliability_from_confidences
from calkd_det.datasets.mini import write_mini_dataset
from calkd_det.errors import ConfigError
from calkd_det.evaluation import DetectionCalibration
from calkd_det.evaluation.localisation_aware import laace, laece
from calkd_det.evaluation.matching import DetectionMatches, ImageDetections, match_detections

NUM_CASES = 240


@pytest.fixture
def two_objects(tmp_path: Path) -> str:
    """Annotation file with one image, a cat and a dog."""
    annotations = [
        dict(image_id=0, label=0, bbox=[0, 0, 10, 10]),
        dict(image_id=0, label=1, bbox=[20, 20, 10, 20]),
    ]
    return annotation_file(tmp_path / 'two.json', annotations, 1)


def test_agrees_with_plain_loops(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    compared = counted = crowds = 0
    for seed in range(NUM_CASES):
        annotations, images = random_case(seed)
        path = annotation_file(tmp_path / 'case.json', annotations, len(images))
        iou_thr, num_bins = (0.5, 15) if seed % 3 else (0.75, 10)
        metric = DetectionCalibration(path, iou_thr=iou_thr, num_bins=num_bins)
        figures = evaluate(metric, images)
        found = plain_matching(annotations, images, iou_thr)
        found_0 = plain_matching(annotations, images, 0.0)
        name = f'IoU{100 * iou_thr:g}'
        assert figures['calibration/num_detections'] == len(found)
        crowds += sum(len(image.scores) for image in images) - len(found)
        counted += len(found)
        if found:
            compared += 1
            over, under = plain_ece([(s, float(iou > 0)) for s, _, iou in found], num_bins)
            expected = {
                f'D-ECE_{name}': over + under,
                f'D-ECE_over_{name}': over,
                f'D-ECE_under_{name}': under,
                f'LaECE_{name}': plain_laece(found, 25),
            }
            for key, value in expected.items():
                assert figures[f'calibration/{key}'] == pytest.approx(value, abs=1e-12), seed
        if found_0:
            assert figures['calibration/LaECE_0'] == pytest.approx(
                plain_laece(found_0, 25), abs=1e-12
            )
            assert figures['calibration/LaACE_0'] == pytest.approx(plain_laace(found_0), abs=1e-12)
    assert compared > 200
    assert counted > 2000
    assert crowds > 100


def matched_case(tmp_path: Path, seeds: range) -> list[DetectionMatches]:
    cases = []
    for seed in seeds:
        annotations, images = random_case(seed)
        path = annotation_file(tmp_path / 'case.json', annotations, len(images))
        coco = DetectionCalibration(path)._coco
        cases += match_detections(coco, images, CATEGORY_IDS, [0.5])
    return [case for case in cases if len(case)]


def test_dece_agrees_with_torchmetrics(tmp_path: Path) -> None:
    for case in matched_case(tmp_path, range(1, 60, 2)):
        scores, hits = torch.from_numpy(case.scores), torch.from_numpy(case.hits)
        ours = reliability_from_confidences(scores, hits, n_bins=15).ece
        assert float(binary_calibration_error(scores, hits.long(), n_bins=15)) == pytest.approx(
            ours, abs=1e-6
        )


@pytest.mark.oracle
def test_dece_agrees_with_netcal(tmp_path: Path) -> None:
    from netcal import metrics as netcal

    for case in matched_case(tmp_path, range(1, 1201)):
        scores, hits = torch.from_numpy(case.scores), torch.from_numpy(case.hits)
        ours = reliability_from_confidences(scores, hits, n_bins=15).ece
        theirs = netcal.ECE(15, detection=True).measure(case.scores, case.hits.astype(int))
        assert theirs == pytest.approx(ours, abs=1e-9)


def test_perfect_detector(two_objects: str) -> None:
    image = detections([(0, 0, 10, 10), (20, 20, 10, 20)], [1.0, 1.0], [0, 1])
    figures = evaluate(DetectionCalibration(two_objects), [image])
    assert figures.pop('calibration/num_detections') == 2
    assert len(figures) == 15
    assert set(figures.values()) == {0.0}


def test_shifted_confidences(two_objects: str) -> None:
    # Perfect boxes at 0.875, and beside each a false positive at 0.125.
    boxes = [(0, 0, 10, 10), (20, 20, 10, 20), (40, 0, 10, 10), (40, 0, 10, 10)]
    image = detections(boxes, [0.875, 0.875, 0.125, 0.125], [0, 1, 0, 1])
    figures = evaluate(DetectionCalibration(two_objects), [image])
    assert figures == {
        'calibration/D-ECE_IoU50': 0.125,
        'calibration/D-ECE_over_IoU50': 0.0625,
        'calibration/D-ECE_under_IoU50': 0.0625,
        'calibration/LaECE_IoU50': 0.125,
        'calibration/LaECE_0': 0.125,
        'calibration/LaACE_0': 0.125,
        # At 0.875 there is no error; with all boxes half of them are wrong.
        'calibration/LRP_IoU50': 0.5,
        'calibration/LRP_loc_IoU50': 0,
        'calibration/LRP_FP_IoU50': 0.5,
        'calibration/LRP_FN_IoU50': 0,
        'calibration/oLRP_IoU50': 0,
        'calibration/oLRP_loc_IoU50': 0,
        'calibration/oLRP_FP_IoU50': 0,
        'calibration/oLRP_FN_IoU50': 0,
        'calibration/OCE': 2 * 0.125**2,
        'calibration/num_detections': 4,
    }


def test_localisation_counts_in_laece_alone(two_objects: str) -> None:
    # Half of the cat: IoU 0.5 is a true positive of confidence 1. A quarter: only at any overlap.
    figures = evaluate(DetectionCalibration(two_objects), [detections([(0, 0, 5, 10)], [1.0], [0])])
    assert figures['calibration/D-ECE_IoU50'] == 0.0
    assert figures['calibration/LaECE_IoU50'] == 0.5
    figures = evaluate(DetectionCalibration(two_objects), [detections([(0, 0, 5, 5)], [1.0], [0])])
    assert figures['calibration/D-ECE_over_IoU50'] == 1.0
    assert figures['calibration/LaECE_IoU50'] == 1.0
    assert figures['calibration/LaECE_0'] == figures['calibration/LaACE_0'] == 0.75


def test_a_box_that_touches_nothing_takes_no_object(two_objects: str) -> None:
    boxes = [(50, 50, 5, 5), (0, 0, 10, 10)]
    figures = evaluate(DetectionCalibration(two_objects), [detections(boxes, [0.75, 0.5], [0, 0])])
    assert figures['calibration/LaACE_0'] == pytest.approx((0.75 + 0.5) / 2)


def test_a_class_without_detections_is_left_out(two_objects: str) -> None:
    figures = evaluate(
        DetectionCalibration(two_objects), [detections([(0, 0, 10, 10)], [0.75], [0])]
    )
    assert figures['calibration/LaECE_0'] == figures['calibration/LaACE_0'] == 0.25


def test_crowd_regions_are_left_out(tmp_path: Path) -> None:
    annotations = [dict(image_id=0, label=0, bbox=[0, 0, 40, 40], iscrowd=1)]
    path = annotation_file(tmp_path / 'crowd.json', annotations, 1)
    image = detections([(5, 5, 4, 4), (50, 50, 5, 5)], [0.9, 0.25], [0, 0])
    figures = evaluate(DetectionCalibration(path), [image])
    assert figures['calibration/num_detections'] == 1
    assert figures['calibration/D-ECE_IoU50'] == 0.25


def test_score_threshold(two_objects: str) -> None:
    image = detections([(0, 0, 10, 10), (40, 0, 5, 5)], [0.75, 0.05], [0, 0])
    figures = evaluate(DetectionCalibration(two_objects, score_thr=0.05), [image])
    assert figures['calibration/num_detections'] == 2
    figures = evaluate(DetectionCalibration(two_objects, score_thr=0.1), [image])
    assert figures['calibration/num_detections'] == 1
    assert figures['calibration/D-ECE_IoU50'] == 0.25


def test_no_detections(two_objects: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    monkeypatch.setattr(
        'calkd_det.evaluation.detection_calibration.print_log', lambda text, **_: said.append(text)
    )
    metric = DetectionCalibration(two_objects, out_dir=str(tmp_path / 'out'))
    figures = evaluate(metric, [detections([], [], [])])
    assert figures.pop('calibration/num_detections') == 0
    missed = {f'calibration/{name}_IoU50' for name in ('LRP', 'LRP_FN', 'oLRP', 'oLRP_FN')}
    assert {figures.pop(name) for name in (*missed, 'calibration/OCE')} == {1.0}
    assert len(figures) == 10
    assert all(math.isnan(value) for value in figures.values())
    assert 'no detection' in said[0]
    assert not (tmp_path / 'out').exists()


def test_nothing_to_average_is_nan() -> None:
    nothing = DetectionMatches(np.zeros(0), np.zeros(0, np.int64), np.zeros(0))
    assert math.isnan(laece(nothing))
    assert math.isnan(laace(nothing))


def test_another_evaluation_starts_anew(two_objects: str) -> None:
    evaluator = Evaluator(DetectionCalibration(two_objects))
    evaluator.dataset_meta = dict(classes=CLASSES)
    image = detections([(0, 0, 10, 10)], [0.75], [0])
    first, second = (
        evaluator.process(data_samples([image])) or evaluator.evaluate(1) for _ in range(2)
    )
    assert first == second


def test_subset_of_classes(two_objects: str) -> None:
    evaluator = Evaluator(DetectionCalibration(two_objects))
    evaluator.dataset_meta = dict(classes=('dog',))
    evaluator.process(data_samples([detections([(20, 20, 10, 20)], [0.75], [0])]))
    assert evaluator.evaluate(1)['calibration/LaACE_0'] == 0.25


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(iou_thr=0), r'val_evaluator\.iou_thr .* > 0, at most 1'),
        (dict(iou_thr=50), r'val_evaluator\.iou_thr .* at most 1, but is 50'),
        (dict(iou_thr='half'), r'val_evaluator\.iou_thr'),
        (dict(score_thr=-0.1), r'val_evaluator\.score_thr .* >= 0'),
        (dict(num_bins=0), r'val_evaluator\.num_bins .* integer >= 1'),
        (dict(num_bins=2.5), r'val_evaluator\.num_bins'),
        (dict(ann_file=None), r'val_evaluator\.ann_file .* path'),
        (dict(ann_file='none.json'), r'val_evaluator\.ann_file .*none\.json cannot be read'),
    ],
)
def test_bad_options(two_objects: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DetectionCalibration(**{'ann_file': two_objects, **options})


@pytest.mark.parametrize(
    ('content', 'message'),
    [('{', 'cannot be read'), ('[]', 'cannot be read'), ('{"images": []}', "has no 'annotations'")],
)
def test_bad_annotation_file(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / 'bad.json'
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        DetectionCalibration(str(path))


def test_class_that_the_file_lacks(two_objects: str) -> None:
    metric = DetectionCalibration(two_objects)
    metric.dataset_meta = dict(classes=('cat', 'horse'))
    with pytest.raises(ConfigError, match=r"lacks the class 'horse' .* has: bird, cat, dog"):
        metric.process({}, data_samples([detections([], [], [])]))


def test_image_and_label_that_the_file_lacks(two_objects: str) -> None:
    metric = DetectionCalibration(two_objects)
    metric.dataset_meta = dict(classes=CLASSES)
    with pytest.raises(ConfigError, match=r'no image with the id 5'):
        metric.process({}, data_samples([detections([], [], [], image_id=5)]))
    with pytest.raises(ConfigError, match=r'label 3, but .* has 3 classes'):
        metric.process({}, data_samples([detections([(0, 0, 1, 1)], [0.5], [3])]))


def test_diagram_goes_to_the_visualizer_and_the_folder(two_objects: str, tmp_path: Path) -> None:
    image = detections([(0, 0, 10, 10)], [0.75], [0])
    Visualizer.get_instance(
        'test', vis_backends=[dict(type='LocalVisBackend')], save_dir=str(tmp_path / 'vis')
    )
    metric = DetectionCalibration(two_objects, out_dir=str(tmp_path / 'out'), prefix='student')
    assert 'student/LaACE_0' in evaluate(metric, [image])
    assert (tmp_path / 'out/student_reliability_IoU50.png').is_file()
    paths = list(tmp_path.rglob('student_reliability_IoU50*.png'))
    assert len(paths) == 2
    for path in paths:
        picture = cv2.imread(str(path))
        assert picture.shape[0] > 400
        assert picture.std() > 10


def _evaluate_as_rank(rank: int, world_size: int, folder: str) -> None:
    root = Path(folder)
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{root}/store{world_size}', rank=rank, world_size=world_size
    )
    _, images = many_case()
    evaluator = Evaluator(
        DetectionCalibration(str(root / 'many.json'), out_dir=str(root / f'out{world_size}'))
    )
    evaluator.dataset_meta = dict(classes=CLASSES)
    # As DefaultSampler with round_up: the first images come again to make the ranks equal.
    share = math.ceil(len(images) / world_size)
    order = [index % len(images) for index in range(share * world_size)][rank::world_size]
    evaluator.process(data_samples([images[index] for index in order]))
    figures = evaluator.evaluate(len(images))
    (root / f'figures{world_size}_{rank}.json').write_text(json.dumps(figures))


def many_case() -> tuple[list[dict], list[ImageDetections]]:
    """Return seven images of cases that are not on a grid."""
    annotations, images = [], []
    for seed in range(1, 99, 2):
        case_annotations, case_images = random_case(seed)
        for image in case_images:
            if len(image.scores) < 5 or len(images) == 7:
                continue
            new_id = len(images)
            annotations += [
                {**item, 'image_id': new_id}
                for item in case_annotations
                if item['image_id'] == image.image_id
            ]
            images.append(ImageDetections(new_id, image.boxes, image.scores, image.labels))
    return annotations, images


@pytest.mark.slow
def test_two_processes_give_the_figures_of_one(tmp_path: Path) -> None:
    annotations, images = many_case()
    path = annotation_file(tmp_path / 'many.json', annotations, len(images))
    alone = evaluate(DetectionCalibration(path), images)
    helpers.run_ranks(_evaluate_as_rank, 2, str(tmp_path))
    for rank in range(2):
        assert json.loads((tmp_path / f'figures2_{rank}.json').read_text()) == alone
    assert alone['calibration/num_detections'] > 30
    assert (tmp_path / 'out2' / 'calibration_reliability_IoU50.png').exists()


CONFIG = """
_base_ = '{base}'
val_evaluator = [
    _base_.val_evaluator,
    dict(type='DetectionCalibration', ann_file=_base_.val_evaluator.ann_file),
]
test_evaluator = val_evaluator
"""


@pytest.mark.slow
def test_beside_coco_metric_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_mini_dataset('data/mini', num_images=dict(train=8, calibration=8, val=8))
    base = config_path('mini/faster-rcnn_r18-student_fpn_12e_mini.py')
    Path('config.py').write_text(CONFIG.format(base=base))
    cfg = Config.fromfile('config.py')
    cfg.merge_from_dict(
        dict(
            work_dir='run',
            test_dataloader=dict(num_workers=0, persistent_workers=False),
            # A random detector's scores hardly reach the threshold of 0.05.
            model=dict(test_cfg=dict(rcnn=dict(score_thr=0.0))),
            randomness=dict(seed=0),
        )
    )
    figures = Runner.from_cfg(cfg).test()
    assert {'coco/bbox_mAP', 'calibration/D-ECE_IoU50', 'calibration/LaACE_0'} <= set(figures)
    assert figures['calibration/num_detections'] > 0
    assert 0 <= figures['calibration/D-ECE_IoU50'] <= 1
    (png,) = Path('run').rglob('vis_image/calibration_reliability_IoU50_*.png')
    assert cv2.imread(str(png)).std() > 10
    (logged,) = Path('run').glob('*/*.json')
    assert load(logged).items() >= figures.items()
