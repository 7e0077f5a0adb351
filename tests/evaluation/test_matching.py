"""Matching against pycocotools' own COCOeval."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from mmdet.datasets.api_wrappers import COCO
from pycocotools.cocoeval import COCOeval

from calkd_det.evaluation.matching import (
    MAX_DETECTIONS,
    ImageDetections,
    count_objects,
    match_detections,
)

CATEGORY_IDS = (3, 7, 11)
THRESHOLDS = (0.3, 0.5, 0.75, 1.0)


def random_case(seed: int, path: Path) -> tuple[COCO, list[ImageDetections]]:
    """Draw objects and detections on a coarse grid, with equal scores, equal IoUs and crowds."""
    rng = random.Random(seed)
    annotations, images = [], []
    for image_id in range(3):
        boxes, scores, labels = [], [], []
        for _ in range(rng.randint(0, 8)):
            x, y, w, h = (4.0 * rng.randint(0, 5) for _ in range(4))
            w, h, label = w + 4, h + 4, rng.randrange(3)
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=CATEGORY_IDS[label],
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=int(rng.random() < 0.2),
                )
            )
            for _ in range(rng.randint(0, 3)):
                x, y = x + rng.choice([-4, 0, 4]), y + rng.choice([-4, 0, 4])
                boxes.append([x, y, x + w, y + h])
                scores.append(rng.choice([0.25, 0.5, 0.8, rng.random()]))
                labels.append(label)
        images.append(
            ImageDetections(
                image_id,
                np.array(boxes, np.float32).reshape(-1, 4),
                np.array(scores, np.float32),
                np.array(labels, np.int64),
            )
        )
    content = dict(
        images=[dict(id=i, width=64, height=64) for i in range(3)],
        categories=[dict(id=i, name=str(i)) for i in CATEGORY_IDS],
        annotations=annotations,
    )
    path.write_text(json.dumps(content))
    return COCO(str(path)), images


def cocoeval_matches(coco: COCO, images: list[ImageDetections]) -> list[list[tuple]]:
    """Return image, label, score and whether it is a hit, of the detections of each threshold."""
    results = [
        dict(
            image_id=image.image_id,
            category_id=CATEGORY_IDS[label],
            bbox=[x1, y1, x2 - x1, y2 - y1],
            score=score,
        )
        for image in images
        for (x1, y1, x2, y2), score, label in zip(
            image.boxes.tolist(), image.scores.tolist(), image.labels.tolist()
        )
    ]
    evaluation = COCOeval(coco, coco.loadRes(results), 'bbox')
    evaluation.params.iouThrs = np.array(THRESHOLDS)
    evaluation.params.maxDets = [MAX_DETECTIONS]
    evaluation.params.areaRng = evaluation.params.areaRng[:1]
    evaluation.evaluate()
    found = [[] for _ in THRESHOLDS]
    for record in filter(None, evaluation.evalImgs):
        label = CATEGORY_IDS.index(record['category_id'])
        for row, members in enumerate(found):
            for score, match, ignore in zip(
                record['dtScores'], record['dtMatches'][row], record['dtIgnore'][row]
            ):
                if not ignore:
                    members.append((record['image_id'], label, score, match > 0))
    return [sorted(members) for members in found]


def test_matches_are_those_of_pycocotools(tmp_path: Path) -> None:
    num_detections = num_ignored = 0
    for seed in range(60):
        coco, images = random_case(seed, tmp_path / 'case.json')
        if not sum(len(image.scores) for image in images):
            continue
        expected = cocoeval_matches(coco, images)
        for matches, members in zip(
            match_detections(coco, images, CATEGORY_IDS, THRESHOLDS), expected
        ):
            found = zip(
                matches.image_indices.tolist(),
                matches.labels.tolist(),
                matches.scores.tolist(),
                matches.hits.tolist(),
            )
            assert sorted(found) == members, seed
            num_detections += len(matches)
            num_ignored += sum(len(image.scores) for image in images) - len(matches)
    assert num_detections > 2000
    assert num_ignored > 200


def test_the_rest_beyond_the_limit_is_left_out(tmp_path: Path) -> None:
    coco, _ = random_case(0, tmp_path / 'case.json')
    scores = np.linspace(0, 1, MAX_DETECTIONS + 20, dtype=np.float32)
    boxes = np.tile(np.array([[40, 40, 50, 50]], np.float32), (len(scores), 1))
    image = ImageDetections(0, boxes, scores, np.zeros(len(scores), np.int64))
    (matches,) = match_detections(coco, [image], CATEGORY_IDS, [0.5])
    assert len(matches) == MAX_DETECTIONS
    assert matches.scores.min() == scores[20]


def test_low_scores_change_no_match_of_higher_ones(tmp_path: Path) -> None:
    for seed in range(20):
        coco, images = random_case(seed, tmp_path / 'case.json')
        (whole,) = match_detections(coco, images, CATEGORY_IDS, [0.5])
        parts = [
            ImageDetections(
                image.image_id,
                *(a[image.scores >= 0.5] for a in (image.boxes, image.scores, image.labels)),
            )
            for image in images
        ]
        (part,) = match_detections(coco, parts, CATEGORY_IDS, [0.5])
        kept = whole.select(whole.scores >= 0.5)
        assert np.array_equal(kept.ious, part.ious)
        assert np.array_equal(kept.image_indices, part.image_indices)


def test_ids_of_images_need_not_be_numbers(tmp_path: Path) -> None:
    coco, images = random_case(1, tmp_path / 'case.json')
    expected = match_detections(coco, images, CATEGORY_IDS, [0.5])[0].ious
    for old in list(coco.imgToAnns):
        coco.imgToAnns[f'image {old}'] = coco.imgToAnns.pop(old)
    renamed = [
        ImageDetections(f'image {image.image_id}', image.boxes, image.scores, image.labels)
        for image in images
    ]
    assert np.array_equal(match_detections(coco, renamed, CATEGORY_IDS, [0.5])[0].ious, expected)


def test_objects_are_counted_without_crowds(tmp_path: Path) -> None:
    total = 0
    for seed in range(10):
        coco, images = random_case(seed, tmp_path / 'case.json')
        expected = [
            sum(
                a['category_id'] == category and not a['iscrowd'] and a['image_id'] != 2
                for a in coco.dataset['annotations']
            )
            for category in CATEGORY_IDS
        ]
        assert count_objects(coco, images[:2], CATEGORY_IDS).tolist() == expected
        total += sum(expected)
    assert total > 30


def test_nothing_detected(tmp_path: Path) -> None:
    coco, _ = random_case(3, tmp_path / 'case.json')
    for images in ([], [ImageDetections(0, np.zeros((0, 4)), np.zeros(0), np.zeros(0))]):
        (matches,) = match_detections(coco, images, CATEGORY_IDS, [0.5])
        assert len(matches) == 0


def federated_case(seed: int, path: Path) -> tuple[COCO, list[ImageDetections]]:
    """Draw a case whose images annotate some classes alone, as LVIS does, without crowds."""
    random_case(seed, path)
    content = json.loads(path.read_text())
    rng = random.Random(seed)
    for annotation in content['annotations']:
        annotation.update(iscrowd=0, segmentation=[[0, 0, 4, 0, 4, 4]])
    for category in content['categories']:
        category['frequency'] = 'f'
    for image in content['images']:
        present = {a['category_id'] for a in content['annotations'] if a['image_id'] == image['id']}
        absent = [c for c in CATEGORY_IDS if c not in present]
        image['neg_category_ids'] = [c for c in absent if rng.random() < 0.5]
        image['not_exhaustive_category_ids'] = [c for c in sorted(present) if rng.random() < 0.5]
    path.write_text(json.dumps(content))
    images = []
    for image_id in range(3):
        size = rng.randint(0, 12)
        corners = np.array([[4.0 * rng.randint(0, 6) for _ in range(4)] for _ in range(size)])
        boxes = corners.reshape(-1, 4) + [0, 0, 28, 28]
        scores = np.array([rng.random() for _ in range(size)])
        labels = np.array([rng.randrange(3) for _ in range(size)], dtype=np.int64)
        images.append(ImageDetections(image_id, boxes, scores, labels))
    return COCO(str(path)), images


def test_classes_that_an_image_does_not_annotate(tmp_path: Path) -> None:
    coco, _ = random_case(0, tmp_path / 'case.json')
    coco.imgToAnns.clear()
    box = dict(iscrowd=0, bbox=[0, 0, 10, 10])
    coco.imgToAnns[0] = [dict(category_id=3, **box), dict(category_id=7, **box)]
    boxes = np.array([[0, 0, 10, 10], [30, 30, 40, 40]] * 3, np.float32)
    image = ImageDetections(0, boxes, np.linspace(0.9, 0.4, 6), np.array([0, 0, 1, 1, 2, 2]))

    def kept(**lists: list[int]) -> list[tuple[int, bool]]:
        coco.imgs[0].update(lists)
        (matches,) = match_detections(coco, [image], CATEGORY_IDS, [0.5])
        return list(zip(matches.labels.tolist(), matches.hits.tolist()))

    whole = [(0, True), (0, False), (1, True), (1, False), (2, False), (2, False)]
    assert kept() == whole
    assert kept(neg_category_ids=[11]) == whole
    assert kept(neg_category_ids=[]) == whole[:4]
    assert kept(not_exhaustive_category_ids=[7]) == whole[:3]
    assert kept(neg_category_ids=[11], not_exhaustive_category_ids=[3]) == [whole[0], *whole[2:]]


@pytest.mark.oracle
def test_matches_are_those_of_lvis(tmp_path: Path) -> None:
    from lvis import LVIS, LVISEval, LVISResults

    num_detections = num_left_out = 0
    for seed in range(40):
        coco, images = federated_case(seed, tmp_path / 'case.json')
        results = [
            dict(
                image_id=image.image_id,
                category_id=CATEGORY_IDS[label],
                bbox=[x1, y1, x2 - x1, y2 - y1],
                score=score,
            )
            for image in images
            for (x1, y1, x2, y2), score, label in zip(image.boxes, image.scores, image.labels)
        ]
        if not results:
            continue
        truth = LVIS(str(tmp_path / 'case.json'))
        evaluation = LVISEval(truth, LVISResults(truth, results), 'bbox')
        evaluation.params.iou_thrs = np.array([0.5])
        evaluation.evaluate()
        found = []
        for record in filter(None, evaluation.eval_imgs):
            if record['area_rng'] != evaluation.params.area_rng[0]:
                continue
            label = CATEGORY_IDS.index(record['category_id'])
            for score, match, ignore in zip(
                record['dt_scores'], record['dt_matches'][0], record['dt_ignore'][0]
            ):
                if not ignore:
                    found.append((record['image_id'], label, score, match > 0))
        (matches,) = match_detections(coco, images, CATEGORY_IDS, [0.5])
        ours = zip(
            matches.image_indices.tolist(),
            matches.labels.tolist(),
            matches.scores.tolist(),
            matches.hits.tolist(),
        )
        assert sorted(ours) == sorted(found), seed
        num_detections += len(matches)
        num_left_out += len(results) - len(matches)
    assert num_detections > 100
    assert num_left_out > 100
