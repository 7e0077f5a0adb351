"""The object-level calibration error against plain loops and the package of its authors."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from mmdet.datasets.api_wrappers import COCO
from plain_calibration import CATEGORY_IDS, annotation_file, detections, plain_iou, random_case

from calkd_det.evaluation.lrp import lrp_errors
from calkd_det.evaluation.matching import ImageDetections, count_objects, match_detections
from calkd_det.evaluation.oce import object_errors


def plain_object_errors(annotations: list[dict], images: list[ImageDetections]) -> list[float]:
    """Compute the error of each object by plain loops, image by image."""
    found = []
    for image in images:
        for item in annotations:
            if item['image_id'] != image.image_id or item.get('iscrowd'):
                continue
            errors = []
            for iou_thr in (0.5, 0.75):
                near = [
                    (float(score), int(label))
                    for (x1, y1, x2, y2), score, label in zip(
                        image.boxes.astype(float), image.scores, image.labels
                    )
                    if plain_iou((x1, y1, x2 - x1, y2 - y1), item['bbox'], False) >= iou_thr
                ]
                if not near:
                    errors.append(1.0)
                    continue
                p = sum(score for score, _ in near) / len(near)
                labels = [label for _, label in near]
                voted = min(set(labels), key=lambda label: (-labels.count(label), label))
                errors.append(2 * (1 - p) ** 2 if voted == item['label'] else 2 * p**2)
            found.append(sum(errors) / 2)
    return found


def test_errors_agree_with_plain_loops(tmp_path: Path) -> None:
    num_objects = 0
    for seed in range(1, 60, 2):
        annotations, images = random_case(seed)
        coco = COCO(annotation_file(tmp_path / 'case.json', annotations, len(images)))
        errors, labels = object_errors(coco, images, CATEGORY_IDS)
        assert errors.tolist() == pytest.approx(plain_object_errors(annotations, images))
        expected = np.bincount(labels, minlength=3)
        assert expected.tolist() == count_objects(coco, images, CATEGORY_IDS).tolist()
        num_objects += len(errors)
    assert num_objects > 100


def test_a_missed_object_counts_as_one(tmp_path: Path) -> None:
    annotations = [dict(image_id=0, label=0, bbox=[0, 0, 10, 10])]
    coco = COCO(annotation_file(tmp_path / 'case.json', annotations, 1))
    for image in (detections([], [], []), detections([(30, 30, 5, 5)], [0.9], [0])):
        assert object_errors(coco, [image], CATEGORY_IDS)[0].tolist() == [1.0]


def drawn_case(seed: int) -> tuple[list[dict], list[ImageDetections]]:
    """Draw images of one class without crowds, and scores that all differ."""
    rng = random.Random(seed)
    annotations, images = [], []
    for image_id in range(6):
        boxes, scores = [], []
        for _ in range(rng.randint(1, 5)):
            x, y, w, h = (rng.uniform(low, 30) for low in (0, 0, 5, 5))
            annotations.append(dict(image_id=image_id, label=0, bbox=[x, y, w, h]))
            for _ in range(rng.randint(0, 3)):
                dx, dy = rng.gauss(0, 2), rng.gauss(0, 2)
                boxes.append((x + dx, y + dy, w, h))
                scores.append(rng.random())
        images.append(detections(boxes, scores, [0] * len(boxes), image_id))
    return annotations, images


@pytest.mark.oracle
@pytest.mark.filterwarnings('ignore:Scores are 1-D')
def test_uq_detr_gives_the_same_oce_and_lrp(tmp_path: Path) -> None:
    import uq_detr

    for seed in range(100):
        annotations, images = drawn_case(seed)
        coco = COCO(annotation_file(tmp_path / 'case.json', annotations, len(images)))
        found = [uq_detr.Detections(i.boxes, i.scores, i.labels) for i in images]
        truth = []
        for image in images:
            own = [a['bbox'] for a in annotations if a['image_id'] == image.image_id]
            corners = np.array([[x, y, x + w, y + h] for x, y, w, h in own])
            truth.append(uq_detr.GroundTruth(corners, np.zeros(len(own), int)))
        errors, _ = object_errors(coco, images, CATEGORY_IDS)
        assert errors.mean() == pytest.approx(uq_detr.oce(found, truth).score, abs=1e-9)
        (matches,) = match_detections(coco, images, CATEGORY_IDS, [0.5])
        ours = lrp_errors(matches, count_objects(coco, images, CATEGORY_IDS), 0.5)
        assert ours.total[0] == pytest.approx(uq_detr.lrp(found, truth).score, abs=1e-9)


@pytest.mark.oracle
def test_netcal_gives_the_d_ece_of_its_paper(tmp_path: Path) -> None:
    from netcal.metrics import ECE

    from calkd_det.evaluation import DetectionCalibration

    for seed in range(50):
        annotations, images = drawn_case(seed)
        path = annotation_file(tmp_path / 'case.json', annotations, len(images))
        metric = DetectionCalibration(path, preset='kuppers2020')
        metric.dataset_meta = dict(classes=('cat', 'dog', 'bird'))
        metric.results = images
        ours = metric.compute_metrics(images)['D-ECE_IoU60']
        (matches,) = match_detections(COCO(path), images, CATEGORY_IDS, [0.6])
        kept = matches.select(matches.scores >= 0.3)
        theirs = ECE(20, detection=True).measure(kept.scores, kept.hits.astype(int))
        assert theirs == pytest.approx(ours, abs=1e-9)
