"""Time DetectionCalibration on made-up boxes of the size of LVIS's validation set.

20,000 images x 300 boxes, 12 objects an image, 1,203 classes. Boxes lie near objects, and 40 % of
them have the class of theirs.

    python tests/benchmark_evaluation.py
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from mmengine.evaluator import Evaluator

from calkd_det.evaluation import DetectionCalibration

NUM_OBJECTS = 12
NUM_BOXES = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n', maxsplit=1)[0])
    parser.add_argument('--images', type=int, default=20_000)
    parser.add_argument('--classes', type=int, default=1203)
    parser.add_argument('--preset', default='kuzucu2024')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(args, Path(folder))


def run(args: argparse.Namespace, folder: Path) -> None:
    rng = np.random.default_rng(0)
    names = tuple(f'class {index}' for index in range(args.classes))
    share = 1 / np.arange(1, args.classes + 1) ** 0.8
    share /= share.sum()
    annotations, samples = [], []
    for image_id in range(args.images):
        labels = rng.choice(args.classes, NUM_OBJECTS, p=share)
        corners = rng.uniform(0, 400, (NUM_OBJECTS, 2))
        sizes = rng.uniform(20, 200, (NUM_OBJECTS, 2))
        for label, corner, size in zip(labels.tolist(), corners.tolist(), sizes.tolist()):
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=label + 1,
                    bbox=corner + size,
                    area=size[0] * size[1],
                )
            )
        near = rng.integers(0, NUM_OBJECTS, NUM_BOXES)
        boxes = np.concatenate([corners[near], corners[near] + sizes[near]], axis=1)
        found = np.where(
            rng.random(NUM_BOXES) < 0.4, labels[near], rng.choice(args.classes, NUM_BOXES, p=share)
        )
        instances = dict(
            bboxes=torch.from_numpy(boxes + rng.normal(0, 10, boxes.shape)).float(),
            scores=torch.from_numpy(rng.random(NUM_BOXES) ** 3).float(),
            labels=torch.from_numpy(found),
        )
        samples.append(dict(img_id=image_id, pred_instances=instances))
    ann_file = folder / 'annotations.json'
    content = dict(
        images=[dict(id=image_id, width=640, height=640) for image_id in range(args.images)],
        categories=[dict(id=index + 1, name=name) for index, name in enumerate(names)],
        annotations=annotations,
    )
    ann_file.write_text(json.dumps(content))
    del annotations, content

    start = time.perf_counter()
    evaluator = Evaluator(
        DetectionCalibration(str(ann_file), preset=args.preset, outfile_prefix=str(folder / 'out'))
    )
    evaluator.dataset_meta = dict(classes=names)
    for sample in samples:
        evaluator.process([sample])
    processed = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_SELF)
    evaluator.evaluate(args.images)
    after = resource.getrusage(resource.RUSAGE_SELF)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f'annotations and boxes read: {processed - start:.1f} s')
    print(f'figures: {time.perf_counter() - processed:.1f} s, {used:.1f} s of processor time')
    print(f'peak of memory: {after.ru_maxrss / 2**20:.2f} GiB')


if __name__ == '__main__':
    main()
