"""The number of image channels that a detector takes."""

from __future__ import annotations

from mmdet.models.backbones.csp_darknet import Focus
from torch import nn

_FOCUS_PIXELS = 4  # Focus lays 2 x 2 pixels side by side as channels


def input_channels(detector: nn.Module) -> int | None:
    """Return the number of image channels that the backbone of a detector takes.

    It is the number of input channels of the first convolution in the order of registration. In
    every backbone of mmdet this is the order of computation.

    Returns:
        The number of channels, or None for a detector without a backbone or a convolution.
    """
    backbone = getattr(detector, 'backbone', None)
    for module in backbone.modules() if isinstance(backbone, nn.Module) else ():
        if isinstance(module, Focus):
            return module.conv.conv.in_channels // _FOCUS_PIXELS
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return None
