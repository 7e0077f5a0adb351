"""Small cases of detections, and calibration and LRP errors of them by plain float64 loops."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import Evaluator

from calkd_det.evaluation import DetectionCalibration
from calkd_det.evaluation.matching import ImageDetections

CLASSES = ('cat', 'dog', 'bird')
CATEGORY_IDS = (3, 7, 11)

Box = tuple[float, float, float, float]


def annotation_file(path: Path, annotations: list[dict], num_images: int) -> str:
    """Write a COCO file of annotations with image_id, label, bbox (x, y, w, h) and iscrowd."""
    content = dict(
        images=[dict(id=i, file_name=f'{i}.jpg', width=64, height=64) for i in range(num_images)],
        categories=[dict(id=i, name=name) for i, name in zip(CATEGORY_IDS, CLASSES)],
        annotations=[
            dict(
                id=index,  # from 0, which pycocotools takes for 'no match'
                image_id=item['image_id'],
                category_id=CATEGORY_IDS[item['label']],
                bbox=item['bbox'],
                area=item['bbox'][2] * item['bbox'][3],
                iscrowd=item.get('iscrowd', 0),
            )
            for index, item in enumerate(annotations)
        ],
    )
    path.write_text(json.dumps(content))
    return str(path)


def random_case(seed: int) -> tuple[list[dict], list[ImageDetections]]:
    """Draw ground truth and detections near it, half of them on a grid for ties and exact IoUs."""
    rng = random.Random(seed)
    grid = seed % 2 == 0
    annotations, images = [], []
    for image_id in range(rng.randint(1, 4)):
        boxes, scores, labels = [], [], []
        for _ in range(rng.randint(0, 6)):
            x, y = rng.uniform(0, 30), rng.uniform(0, 30)
            w, h = rng.uniform(4, 20), rng.uniform(4, 20)
            if grid:
                x, y, w, h = (float(4 * round(v / 4)) for v in (x, y, w + 4, h + 4))
            label = rng.randrange(len(CLASSES))
            crowd = int(rng.random() < 0.2)
            annotations.append(
                dict(image_id=image_id, label=label, bbox=[x, y, w, h], iscrowd=crowd)
            )
            for _ in range(rng.randint(0, 3)):
                shift = [rng.choice([-4, 0, 0, 4]) if grid else rng.gauss(0, 2) for _ in range(2)]
                boxes.append([x + shift[0], y + shift[1], x + shift[0] + w, y + shift[1] + h])
                scores.append(rng.choice([0.25, 0.5, 0.8]) if grid else rng.random())
                labels.append(label if rng.random() < 0.8 else rng.randrange(len(CLASSES)))
        images.append(
            ImageDetections(
                image_id,
                np.array(boxes, np.float32).reshape(-1, 4),
                np.array(scores, np.float32),
                np.array(labels, np.int64),
            )
        )
    return annotations, images


def plain_iou(detection: Box, truth: Box, crowd: bool) -> float:
    (ax, ay, aw, ah), (bx, by, bw, bh) = detection, truth
    width = min(ax + aw, bx + bw) - max(ax, bx)
    height = min(ay + ah, by + bh) - max(ay, by)
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / (aw * ah if crowd else aw * ah + bw * bh - both)


def plain_matching(
    annotations: list[dict], images: list[ImageDetections], iou_thr: float
) -> list[tuple[float, int, float]]:
    """Match detections by plain loops and return score, label and IoU or 0 of each that counts."""
    found = []
    for image in images:
        for label in range(len(CLASSES)):
            truths = [
                a for a in annotations if (a['image_id'], a['label']) == (image.image_id, label)
            ]
            taken: set[int] = set()
            detections = [
                (float(s), [float(v) for v in b])
                for s, b, other in zip(image.scores, image.boxes, image.labels)
                if other == label
            ]
            detections.sort(key=lambda item: -item[0])
            for score, (x1, y1, x2, y2) in detections:
                best, best_iou, on_crowd = None, 0.0, False
                for index, truth in enumerate(truths):
                    iou = plain_iou((x1, y1, x2 - x1, y2 - y1), truth['bbox'], truth['iscrowd'])
                    if iou <= 0 or iou < iou_thr:
                        continue
                    if truth['iscrowd']:
                        on_crowd = True
                    elif index not in taken and iou >= best_iou:
                        best, best_iou = index, iou
                if best is not None:
                    taken.add(best)
                elif on_crowd:
                    continue
                found.append((score, label, best_iou))
    return found


def plain_ece(pairs: list[tuple[float, float]], num_bins: int) -> tuple[float, float]:
    """Return the over- and the under-confident part of the ECE of (confidence, target) pairs."""
    bins = defaultdict(list)
    for confidence, target in pairs:
        index = next(k for k in range(num_bins) if confidence <= (k + 1) / num_bins)
        bins[index].append((confidence, target))
    over = under = 0.0
    for members in bins.values():
        mean_confidence = sum(c for c, _ in members) / len(members)
        mean_target = sum(t for _, t in members) / len(members)
        gap = (mean_target - mean_confidence) * len(members) / len(pairs)
        over, under = over + max(-gap, 0), under + max(gap, 0)
    return over, under


def plain_laece(found: list[tuple[float, int, float]], num_bins: int) -> float:
    """Compute the LaECE by its definition, with precision and mean IoU of true positives apart."""
    per_class = []
    for label in range(len(CLASSES)):
        members = [(s, iou) for s, other, iou in found if other == label]
        error = 0.0
        for k in range(num_bins):
            lower, upper = k / num_bins, (k + 1) / num_bins
            inside = [(s, i) for s, i in members if lower < s <= upper or (k == 0 and s == 0)]
            if not inside:
                continue
            ious = [iou for _, iou in inside if iou > 0]
            precision = len(ious) / len(inside)
            mean_iou = sum(ious) / len(ious) if ious else 0.0
            confidence = sum(s for s, _ in inside) / len(inside)
            error += len(inside) / len(members) * abs(confidence - precision * mean_iou)
        if members:
            per_class.append(error)
    return sum(per_class) / len(per_class)


def plain_laace(found: list[tuple[float, int, float]]) -> float:
    per_class = []
    for label in range(len(CLASSES)):
        gaps = [abs(s - iou) for s, other, iou in found if other == label]
        if gaps:
            per_class.append(sum(gaps) / len(gaps))
    return sum(per_class) / len(per_class)


def plain_lrp(
    annotations: list[dict], images: list[ImageDetections], label: int, iou_thr: float, score: float
) -> tuple[float, float, float, float] | None:
    """Return LRP error, mean 1 - IoU, FP share and FN share of a class's boxes of a least score.

    None where the class has no object. Shares that are not defined are NaN.
    """
    kept = [
        ImageDetections(
            image.image_id,
            *(
                values[(image.scores >= score) & (image.labels == label)]
                for values in (image.boxes, image.scores, image.labels)
            ),
        )
        for image in images
    ]
    num_objects = sum(a['label'] == label and not a.get('iscrowd') for a in annotations)
    if not num_objects:
        return None
    ious = [iou for _, _, iou in plain_matching(annotations, kept, iou_thr)]
    true, false = [iou for iou in ious if iou > 0], [iou for iou in ious if not iou > 0]
    missed = num_objects - len(true)
    total = sum((1 - iou) / (1 - iou_thr) for iou in true) + len(false) + missed
    return (
        total / (len(true) + len(false) + missed),
        sum(1 - iou for iou in true) / len(true) if true else float('nan'),
        len(false) / len(ious) if ious else float('nan'),
        missed / num_objects,
    )


def plain_optimal_threshold(
    annotations: list[dict], images: list[ImageDetections], label: int, iou_thr: float
) -> float | None:
    """Return the highest score of least LRP error; None without a true positive."""
    own = [i for i in images for other in i.labels if other == label]
    scores = sorted({float(s) for i in own for s, o in zip(i.scores, i.labels) if o == label})
    errors = {s: plain_lrp(annotations, images, label, iou_thr, s) for s in scores}
    if not errors or any(e is None for e in errors.values()) or errors[scores[0]][3] == 1:
        return None
    least = min(e[0] for e in errors.values())
    return max(s for s, e in errors.items() if e[0] <= least + 1e-12)


def data_samples(images: list[ImageDetections]) -> list[dict[str, Any]]:
    return [
        dict(
            img_id=image.image_id,
            pred_instances=dict(
                bboxes=torch.from_numpy(image.boxes),
                scores=torch.from_numpy(image.scores),
                labels=torch.from_numpy(image.labels),
            ),
        )
        for image in images
    ]


def evaluate(metric: DetectionCalibration, images: list[ImageDetections]) -> dict[str, float]:
    evaluator = Evaluator(metric)
    evaluator.dataset_meta = dict(classes=CLASSES)
    for image in images:
        evaluator.process(data_samples([image]))
    return evaluator.evaluate(len(images))


def detections(
    boxes: list[Box], scores: list[float], labels: list[int], image_id: int = 0
) -> ImageDetections:
    """Return detections with boxes given as x, y, w, h."""
    corners = [[x, y, x + w, y + h] for x, y, w, h in boxes]
    return ImageDetections(
        image_id,
        np.array(corners, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(labels, np.int64),
    )
