"""Makes the mini data set: handwritten digits, or Fashion-MNIST's clothes, on photographs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from calkd_det.datasets.items import FASHION_MNIST_DIR, SOURCES, SPLITS
from calkd_det.datasets.mini import (
    DEFAULT_IMAGE_SIZE,
    DEFAULT_NUM_IMAGES,
    MiniDataset,
    write_mini_dataset,
)
from calkd_det.errors import ConfigError

DESCRIPTION = """\
Make a small detection set in COCO format that trains in minutes on a CPU.

Real handwritten digits (scikit-learn's) or Fashion-MNIST's clothes are turned,
coloured and blended onto random pieces of two real photographs. The splits share
no item, and no image id. The same arguments always make the same files; if they
are already there, nothing is done.
"""

EPILOG = """\
writes:
  OUT/{train,calibration,val}/*.jpg
  OUT/annotations/{train,calibration,val}.json
  OUT/samples.png        some images of each split with their boxes, to look at
  OUT/mini_dataset.json  the arguments and the checksums; written last

examples:
  python tools/make_mini_data.py data/mini
  python tools/make_mini_data.py data/mini-fashion --items fashion-mnist
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('out', metavar='OUT', type=Path, help='folder to write to')
    parser.add_argument(
        '--items', choices=SOURCES, default=SOURCES[0], help='what to detect (default: %(default)s)'
    )
    parser.add_argument(
        '--source',
        metavar='DIR',
        type=Path,
        help='folder of the four Fashion-MNIST files, gzipped or not (default: where the Debian '
        f'package dataset-fashion-mnist puts them, {FASHION_MNIST_DIR})',
    )
    for split in SPLITS:
        parser.add_argument(
            f'--{split}',
            metavar='N',
            type=int,
            default=DEFAULT_NUM_IMAGES[split],
            help=f'number of {split} images (default: %(default)s)',
        )
    parser.add_argument(
        '--image-size',
        metavar='PIXELS',
        type=int,
        default=DEFAULT_IMAGE_SIZE,
        help='side of the square images (default: %(default)s)',
    )
    parser.add_argument('--seed', metavar='N', type=int, default=0, help='default: %(default)s')
    parser.add_argument(
        '--force', action='store_true', help='replace a mini data set that is already in OUT'
    )
    return parser.parse_args(argv)


def format_summary(dataset: MiniDataset) -> str:
    """Returns a table of images, boxes and boxes per class, a column a split."""
    boxes = dataset.boxes_per_class
    rows = [
        ['', *SPLITS],
        ['images', *(dataset.num_images[split] for split in SPLITS)],
        ['boxes', *(sum(boxes[split].values()) for split in SPLITS)],
        *(['  ' + name, *(boxes[split][name] for split in SPLITS)] for name in dataset.classes),
    ]
    return '\n'.join(f'{name:<12}' + ''.join(f'{cell:>13}' for cell in row) for name, *row in rows)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        dataset = write_mini_dataset(
            args.out,
            items=args.items,
            source=args.source,
            num_images={split: getattr(args, split) for split in SPLITS},
            image_size=args.image_size,
            seed=args.seed,
            overwrite=args.force,
            progress=True,
        )
    except (ConfigError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(f'{dataset.root}: {"made" if dataset.created else "already there, nothing to do"}')
    print(format_summary(dataset))
    print(f'look at {dataset.samples}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
