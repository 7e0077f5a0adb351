"""Small pictures of single things, to be pasted into scenes: where they come from, who gets which.

An item is one grey picture with a class. The digits come with scikit-learn; Fashion-MNIST is read
from its four IDX files.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from calkd_det.errors import ConfigError, did_you_mean

SPLITS = ('train', 'calibration', 'val')
SOURCES = ('digits', 'fashion-mnist')
POOL_SHARES = (0.70, 0.15, 0.15)

DIGIT_CLASSES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
FASHION_CLASSES = (
    't-shirt',
    'trouser',
    'pullover',
    'dress',
    'coat',
    'sandal',
    'shirt',
    'sneaker',
    'bag',
    'ankle boot',
)

FASHION_MNIST_PACKAGE = 'dataset-fashion-mnist'
FASHION_MNIST_DIR = Path('/usr/share/datasets/fashion-mnist')
FASHION_MNIST_ADVICE = (
    f'install the Debian or Ubuntu package {FASHION_MNIST_PACKAGE}, '
    'or give the folder of the four Fashion-MNIST files as the source'
)

IDX_UINT8 = 0x08


@dataclass(frozen=True, eq=False)
class Items:
    """All items of one source.

    Attributes:
        name: what the source is called, such as ``'digits'``.
        images: uint8, shape (N, H, W), 0 where there is no ink.
        labels: int64, shape (N,), indices into ``classes``.
        classes: the class names.
        textured: True if the grey values inside an item are its texture, False if they only say
            how much of a pixel the ink covers.
        credit: where the items come from and under which licence, as a COCO ``licenses`` entry
            less its id, plus a ``description``.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    textured: bool
    credit: dict[str, str]

    def sha256(self) -> str:
        """Returns the hex digest of the pictures and their labels."""
        digest = hashlib.sha256(self.images.tobytes())
        digest.update(self.labels.astype('<i8').tobytes())
        return digest.hexdigest()


def load_items(name: str, source: str | Path | None = None) -> Items:
    """Loads the items of a source.

    Args:
        name: one of ``SOURCES``.
        source: the folder of the Fashion-MNIST files; None means where Debian's package puts them.

    Raises:
        ConfigError: if the source is unknown, or its files are missing or damaged.
    """
    if name not in SOURCES:
        raise ConfigError(f"items has no source '{name}': {did_you_mean(name, SOURCES)}.")
    if name == 'fashion-mnist':
        return load_fashion_items(FASHION_MNIST_DIR if source is None else source)
    if source is not None:
        raise ConfigError(f"source must be left out: items '{name}' come with scikit-learn.")
    return load_digit_items()


def load_digit_items() -> Items:
    """Loads scikit-learn's 1,797 handwritten digits, 8x8."""
    bunch = import_sklearn_datasets().load_digits()
    return Items(
        name='digits',
        images=np.rint(bunch.images * (255 / 16)).astype(np.uint8),
        labels=bunch.target.astype(np.int64),
        classes=DIGIT_CLASSES,
        textured=False,
        credit={
            'description': 'Handwritten digits: E. Alpaydin and C. Kaynak, Optical Recognition of '
            'Handwritten Digits, UCI Machine Learning Repository, 1998, as distributed with '
            'scikit-learn (BSD-3-Clause)',
            'name': 'Attribution 4.0 International (CC BY 4.0)',
            'url': 'https://creativecommons.org/licenses/by/4.0/',
        },
    )


def load_fashion_items(folder: str | Path) -> Items:
    """Loads the 70,000 pictures of Fashion-MNIST, 28x28.

    Its train and test files are pooled, so that every source is split by the same rule.

    Raises:
        ConfigError: if a file is missing or damaged, or the files do not fit together.
    """
    folder = Path(folder)
    images, labels = [], []
    for part in ('train', 't10k'):
        image_file = _find_idx(folder, f'{part}-images-idx3-ubyte')
        label_file = _find_idx(folder, f'{part}-labels-idx1-ubyte')
        images.append(read_idx(image_file, ndim=3))
        labels.append(read_idx(label_file, ndim=1))
        if images[-1].shape[1:] != (28, 28):
            raise ConfigError(f'{image_file} does not hold 28x28 pictures: {FASHION_MNIST_ADVICE}.')
        if len(images[-1]) != len(labels[-1]) or np.any(labels[-1] >= len(FASHION_CLASSES)):
            raise ConfigError(
                f'{label_file} does not hold one label from 0 to 9 for each picture of '
                f'{image_file.name}: {FASHION_MNIST_ADVICE}.'
            )
    return Items(
        name='fashion-mnist',
        images=np.concatenate(images),
        labels=np.concatenate(labels).astype(np.int64),
        classes=FASHION_CLASSES,
        textured=True,
        credit={
            'description': 'Fashion-MNIST: H. Xiao, K. Rasul and R. Vollgraf, copyright Zalando SE',
            'name': 'MIT License',
            'url': 'https://opensource.org/license/mit',
        },
    )


def import_sklearn_datasets() -> ModuleType:
    """Import ``sklearn.datasets``, which holds the digits and the photographs.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    try:
        return importlib.import_module('sklearn.datasets')
    except ModuleNotFoundError as error:
        raise ConfigError(
            'the digits and the photographs of the mini data set come with scikit-learn, which is '
            'not installed: pip install scikit-learn'
        ) from error


def read_idx(path: str | Path, ndim: int) -> np.ndarray:
    """Reads an IDX file of unsigned bytes, gzipped or not.

    Args:
        path: the file.
        ndim: how many dimensions it must have.

    Returns:
        uint8 array of ``ndim`` dimensions.

    Raises:
        ConfigError: if the file cannot be read, is no such IDX file, or is cut short.
    """
    try:
        data = Path(path).read_bytes()
        if data.startswith(b'\x1f\x8b'):
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f'{path} cannot be read ({error}): {FASHION_MNIST_ADVICE}.') from error
    start = 4 + 4 * ndim
    if data[:4] != bytes((0, 0, IDX_UINT8, ndim)) or len(data) < start:
        raise ConfigError(
            f'{path} is not an IDX file of bytes in {ndim} dimensions: {FASHION_MNIST_ADVICE}.'
        )
    shape = tuple(int(n) for n in np.frombuffer(data, '>u4', count=ndim, offset=4))
    values = np.frombuffer(data, np.uint8, offset=start)
    # Python's integers, because a damaged header may name more values than an int64 can count.
    expected = 1
    for n in shape:
        expected *= n
    if len(values) != expected:
        raise ConfigError(
            f'{path} is damaged, with {len(values)} values where its header says {expected}: '
            f'{FASHION_MNIST_ADVICE}.'
        )
    return values.reshape(shape)


def split_pool(labels: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Deals the items out to the splits, class by class, so that no two splits share an item.

    Args:
        labels: integers, shape (N,), the class of each item.
        seed: the same seed and labels always give the same split.

    Returns:
        For each of ``SPLITS``, the sorted item ids (indices into ``labels``), int64, shape (N_s,).

    Raises:
        ConfigError: if a class has too few items to give each split one.
    """
    rng = np.random.default_rng(seed)
    parts: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for label in np.unique(labels):
        ids = rng.permutation(np.flatnonzero(labels == label))
        cuts = np.rint(np.cumsum(POOL_SHARES[:-1]) * len(ids)).astype(int)
        for split, part in zip(SPLITS, np.split(ids, cuts)):
            if len(part) == 0:
                raise ConfigError(
                    f'class {label} has only {len(ids)} items, too few to split '
                    f'into {", ".join(SPLITS)}.'
                )
            parts[split].append(part)
    return {split: np.sort(np.concatenate(parts[split])) for split in SPLITS}


def _find_idx(folder: Path, stem: str) -> Path:
    for name in (stem, f'{stem}.gz'):
        if (folder / name).is_file():
            return folder / name
    raise ConfigError(f'{folder / stem}(.gz) is missing: {FASHION_MNIST_ADVICE}.')
