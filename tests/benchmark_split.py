"""Time ``calkd split`` on a made-up annotation file of the size of COCO train2017.

It has 120,000 images, 80 classes, about 7 objects an image with the outlines of COCO's length, and
1 % of images without objects. The file is made first; time and memory are those of the split alone.

    python tests/benchmark_split.py
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def write_made_up(path: Path, num_images: int, num_classes: int) -> None:
    random = np.random.default_rng(0)
    share = np.exp(-np.linspace(0, 6, num_classes))  # as uneven as COCO's classes
    share /= share.sum()
    counts = random.poisson(7.3, num_images) * (random.random(num_images) > 0.01)
    with path.open('w', encoding='utf-8') as file:
        images = [
            dict(id=10 * i, file_name=f'{i:012}.jpg', height=480, width=640)
            for i in range(num_images)
        ]
        categories = [dict(id=i, name=f'class {i}') for i in range(num_classes)]
        file.write(f'{{"categories": {json.dumps(categories)}, "images": {json.dumps(images)}')
        file.write(', "annotations": [')
        number = 0
        for image, count in enumerate(counts.tolist()):
            for label in random.choice(num_classes, count, p=share).tolist():
                outline = (random.random(2 * random.geometric(1 / 25)) * 480).round(2).tolist()
                annotation = dict(
                    segmentation=[outline],
                    area=702.1057499999998,
                    iscrowd=int(number % 80 == 0),
                    image_id=10 * image,
                    bbox=[473.07, 395.93, 38.65, 28.67],
                    category_id=label,
                    id=number,
                )
                file.write(f'{", " if number else ""}{json.dumps(annotation)}')
                number += 1
        file.write(']}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n', maxsplit=1)[0])
    parser.add_argument('--images', type=int, default=120_000)
    parser.add_argument('--classes', type=int, default=80)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'made-up.json')
        write_made_up(path, args.images, args.classes)
        size = path.stat().st_size / 2**20
        start = time.perf_counter()
        sizes = [f'calibration={args.images // 60}', f'minival={args.images // 24}', 'rest']
        words = ['split', path, '--out', Path(folder, 'parts'), '--parts', *sizes]
        subprocess.run([sys.executable, '-m', 'calkd_cli', *words], check=True)
        seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    peak = used.ru_maxrss / (2**30 if sys.platform == 'darwin' else 2**20)
    print(
        f'{args.images:,} images, {size:.0f} MiB: {seconds:.1f} s, of the processor '
        f'{used.ru_utime + used.ru_stime:.1f} s, peak {peak:.2f} GiB'
    )


if __name__ == '__main__':
    main()
