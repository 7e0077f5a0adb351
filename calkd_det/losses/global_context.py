"""Global context block of feature maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GlobalContext(nn.Module):
    """Compute one vector of context for each image from attended places of its feature map.

    A 1 x 1 convolution and a softmax over places give each place a weight. The weighted mean of the
    map goes through a linear layer to half the channels, LayerNorm, ReLU and a linear layer back.
    The last layer starts at zero, and so does the context. (Cao et al., `GCNet
    <https://arxiv.org/abs/1904.11492>`_, section 3.3.)

    Args:
        channels: D, the number of channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 2, 1)
        self.place_logits = nn.Conv2d(channels, 1, kernel_size=1)
        self.transform = nn.Sequential(
            nn.Linear(channels, hidden),
            nn.LayerNorm(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, channels),
        )
        nn.init.kaiming_normal_(self.place_logits.weight, nonlinearity='relu')
        nn.init.zeros_(self.place_logits.bias)
        nn.init.zeros_(self.transform[-1].weight)
        nn.init.zeros_(self.transform[-1].bias)

    def forward(self, maps: Tensor, valid: Tensor | None = None) -> Tensor:
        """Compute the context.

        Args:
            maps: Float, shape (N, D, h, w).
            valid: Which places count, bool, shape (N, 1, h, w); None where all do.

        Returns:
            Float, shape (N, D, 1, 1).
        """
        logits = self.place_logits(maps)
        if valid is not None:
            logits = logits.masked_fill(~valid, torch.finfo(logits.dtype).min)
        weights = logits.flatten(2).softmax(dim=2)
        mean = (maps.flatten(2) * weights).sum(dim=2)
        return self.transform(mean)[:, :, None, None]
