"""Division of images into disjoint parts in which all classes have about the same share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calkd_det.errors import CalKDError


def stratify(presence: np.ndarray, sizes: Sequence[int], seed: int) -> np.ndarray:
    """Divide images into parts of given sizes by iterative stratification.

    The algorithm is that of Sechidis et al. (`On the Stratification of Multi-Label Data
    <https://doi.org/10.1007/978-3-642-23808-6_10>`_, 2011): the rarest class is divided first. It
    meets sizes up to about one image a class. Then images are moved until the sizes are met, each
    time the one that leaves the shares of the classes nearest to even.

    Args:
        presence: Whether an image has an object of a class, bool, shape (N, C). An image without
            objects counts as one of a class of its own.
        sizes: Number of images of each part, > 0. They sum to N.
        seed: Seed. The same arguments give the same parts.

    Returns:
        Index of each image's part, int64, shape (N,).

    Raises:
        CalKDError: The package ``iterative-stratification`` is not installed.
    """
    try:
        from iterstrat.ml_stratifiers import IterativeStratification
    except ImportError:
        raise CalKDError(
            'dividing images by class needs the package iterative-stratification: '
            'pip install iterative-stratification'
        ) from None
    presence = np.concatenate([presence, ~presence.any(axis=1, keepdims=True)], axis=1)
    random = np.random.RandomState(seed)
    # A class goes to the largest part first, which would get the images that the file lists first.
    order = random.permutation(len(presence))
    part = np.empty(len(presence), dtype=np.int64)
    shares = np.array(sizes) / len(presence)
    part[order] = IterativeStratification(presence[order], shares, random)
    return _with_exact_sizes(part, presence, np.array(sizes))


def _with_exact_sizes(part: np.ndarray, presence: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Move images from parts that are too large to parts that are too small."""
    rows = presence.astype(np.float32)
    total = np.maximum(rows.sum(axis=0), 1)
    excess = np.bincount(part, minlength=len(sizes)) - sizes
    # By part and class, how many images with the class it has too many.
    deviation = np.stack([rows[part == index].sum(axis=0) for index in range(len(sizes))])
    deviation -= np.outer(sizes / len(part), total)
    while excess.any():
        source, target = int(excess.argmax()), int(excess.argmin())
        # Change of the squared deviations of both parts by a move, relative to the class.
        change = (deviation[target] - deviation[source] + 1) / total
        candidates = np.flatnonzero(part == source)
        moved = candidates[(rows[candidates] @ change).argmin()]
        part[moved] = target
        for index, sign in ((source, -1), (target, 1)):
            excess[index] += sign
            deviation[index] += sign * rows[moved]
    return part
