"""Make a small detection set in COCO format that trains in minutes on a CPU.

Real handwritten digits (scikit-learn's) or Fashion-MNIST's clothes are turned, coloured and
blended onto random pieces of two real photographs (scikit-learn's). The splits share no item
and no image id. The same arguments always make the same files; if they are already there,
nothing is done.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from calkd_det.datasets.mini import MiniDataset

# As in calkd_det.datasets, which takes seconds to import; a test compares them.
SOURCES = ('digits', 'fashion-mnist')
NUM_IMAGES = {'train': 640, 'calibration': 200, 'val': 300}
IMAGE_SIZE = 128

EPILOG = """\
writes:
  OUT/{train,calibration,val}/*.jpg
  OUT/annotations/{train,calibration,val}.json
  OUT/samples.png        some images of each split with their boxes, to look at
  OUT/mini_dataset.json  the arguments and the checksums; written last

examples:
  calkd mini-data data/mini
  calkd mini-data data/mini-fashion --items fashion-mnist

"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument('out', metavar='OUT', type=Path, help='folder to write to')
    parser.add_argument(
        '--items', choices=SOURCES, default=SOURCES[0], help='what to detect (default: %(default)s)'
    )
    parser.add_argument(
        '--source',
        metavar='DIR',
        type=Path,
        help='folder of the four Fashion-MNIST files, gzipped or not (default: where the Debian '
        'package dataset-fashion-mnist puts them)',
    )
    for split, count in NUM_IMAGES.items():
        parser.add_argument(
            f'--{split}',
            metavar='N',
            type=int,
            default=count,
            help=f'number of {split} images (default: %(default)s)',
        )
    parser.add_argument(
        '--image-size',
        metavar='PIXELS',
        type=int,
        default=IMAGE_SIZE,
        help='side of the square images (default: %(default)s)',
    )
    parser.add_argument('--seed', metavar='N', type=int, default=0, help='default: %(default)s')
    parser.add_argument(
        '--force', action='store_true', help='replace a mini data set that is already in OUT'
    )


def run(args: Namespace) -> int:
    from calkd_det.datasets.mini import write_mini_dataset

    dataset = write_mini_dataset(
        args.out,
        items=args.items,
        source=args.source,
        num_images={split: getattr(args, split) for split in NUM_IMAGES},
        image_size=args.image_size,
        seed=args.seed,
        overwrite=args.force,
        progress=True,
    )
    print(f'{dataset.root}: {"made" if dataset.created else "already there, nothing to do"}')
    print(format_counts(dataset))
    print(f'look at {dataset.samples}')
    return 0


def format_counts(dataset: MiniDataset) -> str:
    """Return a table of images, boxes and boxes per class, a column a split."""
    boxes = dataset.boxes_per_class
    rows = [
        ['', *NUM_IMAGES],
        ['images', *(dataset.num_images[split] for split in NUM_IMAGES)],
        ['boxes', *(sum(boxes[split].values()) for split in NUM_IMAGES)],
        *(['  ' + name, *(boxes[split][name] for split in NUM_IMAGES)] for name in dataset.classes),
    ]
    return '\n'.join(f'{name:<12}' + ''.join(f'{cell:>13}' for cell in row) for name, *row in rows)
