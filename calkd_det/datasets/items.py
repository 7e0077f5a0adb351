"""Items: small grey pictures of one thing each, with a class, that are pasted into scenes.

The digits come with scikit-learn. Fashion-MNIST is read from its four IDX files.
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
        name: The name of the source, such as ``'digits'``.
        images: uint8, shape (N, H, W), 0 outside of the item.
        labels: int64, shape (N,), indices into ``classes``.
        classes: The class names.
        textured: Whether grey values inside an item are its texture. Otherwise a grey value is the
            share of the pixel that the item covers.
        credit: Origin and licence of the items: a COCO ``licenses`` entry without its id, and a
            ``description``.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    textured: bool
    credit: dict[str, str]

    def sha256(self) -> str:
        """Return the SHA-256 of the pictures and their labels, in hexadecimal."""
        digest = hashlib.sha256(self.images.tobytes())
        digest.update(self.labels.astype('<i8').tobytes())
        return digest.hexdigest()


def load_items(name: str, source: str | Path | None = None) -> Items:
    """Load the items of a source.

    Args:
        name: One of ``SOURCES``.
        source: The folder of the Fashion-MNIST files; None for the folder of Debian's package.

    Raises:
        ConfigError: The source is unknown, its files are missing or damaged, or the digits need
            scikit-learn, which is not installed.
    """
    if name not in SOURCES:
        raise ConfigError(f"items has no source '{name}': {did_you_mean(name, SOURCES)}.")
    if name == 'fashion-mnist':
        return load_fashion_items(FASHION_MNIST_DIR if source is None else source)
    if source is not None:
        raise ConfigError(f"source must be left out: items '{name}' come with scikit-learn.")
    return load_digit_items()


def has_source(name: str, source: str | Path | None = None) -> bool:
    """Return whether :func:`load_items` finds the folder of its files; True where it needs none."""
    folder = FASHION_MNIST_DIR if source is None else source
    return name != 'fashion-mnist' or Path(folder).exists()


def load_digit_items() -> Items:
    """Load scikit-learn's 1,797 handwritten digits, 8x8."""
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
    """Load the 70,000 pictures of Fashion-MNIST, 28x28.

    Its train and test files are pooled, so that every source is split by the same rule.

    Args:
        folder: The folder of the four files, gzipped or not.

    Raises:
        ConfigError: A file is missing or damaged, or the files do not fit together.
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
    """Read an IDX file of unsigned bytes, gzipped or not.

    Args:
        path: The file.
        ndim: The number of dimensions that it must have.

    Returns:
        uint8 array of ``ndim`` dimensions.

    Raises:
        ConfigError: The file cannot be read, is not such an IDX file, or is truncated.
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
    # Python's integers, because the product of a damaged header may overflow an int64.
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
    """Split the items by class, so that no two splits share an item.

    Args:
        labels: Integers, shape (N,), the class of each item.
        seed: Seed of the split.

    Returns:
        For each of ``SPLITS``, the sorted item ids (indices into ``labels``), int64, shape (N_s,).

    Raises:
        ConfigError: A class has too few items for one in each split.
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
