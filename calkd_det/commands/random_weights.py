"""Weights of detectors that nothing is loaded into."""

from __future__ import annotations

from torch import nn


def fill_values(detector: nn.Module) -> nn.Module:
    """Give random values, in place, to what detection transformers leave without any at first."""
    if hasattr(detector, 'level_embed'):
        nn.init.normal_(detector.level_embed)
    return detector
