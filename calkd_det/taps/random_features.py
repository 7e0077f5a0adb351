"""Random inputs, on which a tap is compared with a head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def random_features(sizes: Sequence[tuple[int, int]], channels: int) -> tuple[Tensor, ...]:
    """Return normally distributed feature maps of two images, each (2, channels, height, width)."""
    return tuple(torch.randn(2, channels, height, width) for height, width in sizes)


def random_rois(size: int, count: int) -> Tensor:
    """Return RoIs in two square images.

    Args:
        size: Height and width of the images in pixels.
        count: Number of RoIs.

    Returns:
        Float, shape (count, 5): image index, x1, y1, x2, y2 in pixels. Width and
        height are at least 8 pixels.
    """
    corner = torch.rand(count, 2) * size / 2
    extent = 8 + torch.rand(count, 2) * (size / 2 - 8)
    image = torch.arange(count).remainder(2).unsqueeze(1)
    return torch.cat([image, corner, corner + extent], dim=1)
