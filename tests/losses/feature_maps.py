"""Random feature maps for the tests of losses that compare them."""

from __future__ import annotations

import torch
from torch import Tensor

SIZES = ((6, 8), (3, 4))
# Of two images: one box over several places, a small one inside of it, one alone.
BOXES = [
    torch.tensor([[0.05, 0.1, 0.62, 0.55], [0.3, 0.3, 0.4, 0.5]]),
    torch.tensor([[0.5, 0.25, 1.0, 1.0]]),
]


def make_maps(channels: int = 5, seed: int = 0, scale: float = 1.0) -> list[Tensor]:
    """Float64 maps of two levels and two images."""
    generator = torch.Generator().manual_seed(seed)
    return [
        scale * torch.randn(2, channels, *size, generator=generator, dtype=torch.float64)
        for size in SIZES
    ]


def make_valid() -> list[Tensor]:
    """All of the first image, and of the second one the left part without one place."""
    masks = []
    for height, width in SIZES:
        mask = torch.ones(2, 1, height, width, dtype=torch.bool)
        mask[1, :, :, width // 2 + 1 :] = False
        mask[1, :, 0, 1] = False
        masks.append(mask)
    return masks


def as_float(maps: list[Tensor]) -> list[Tensor]:
    return [each.float() for each in maps]
