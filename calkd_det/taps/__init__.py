"""Taps: one file a head family, one entry in :data:`TAPS`."""

from __future__ import annotations

from torch import nn

from calkd_det.errors import ConfigError
from calkd_det.taps.base import Tap
from calkd_det.taps.cascade_roi_head import CascadeRoIHeadTap
from calkd_det.taps.dense_head import DenseHeadTap
from calkd_det.taps.geometry import Geometry, check_geometry
from calkd_det.taps.refused import reason_against
from calkd_det.taps.roi_head import RoIHeadTap
from calkd_det.taps.samples import Activation, ClassifierSamples
from calkd_det.taps.yolox_head import YOLOXHeadTap

TAPS: tuple[Tap, ...] = (RoIHeadTap(), CascadeRoIHeadTap(), DenseHeadTap(), YOLOXHeadTap())


def find_tap(detector: nn.Module, key: str) -> Tap:
    """The tap that knows the detector's head.

    Args:
        detector: Any mmdet detector.
        key: What to call it in an error message, e.g. ``model`` or ``model.teacher.config``.

    Raises:
        ConfigError: No tap knows the head.
    """
    for tap in TAPS:
        if tap.supports(detector):
            return tap
    head = next(
        (h for name in ('roi_head', 'bbox_head') if (h := getattr(detector, name, None))), None
    )
    what = type(head).__name__ if head is not None else 'no head'
    reason = reason_against(detector)
    raise ConfigError(
        f'{key}: CalKD-Det cannot read the class logits of a {type(detector).__name__} with '
        f'{what}{f": {reason}" if reason else ""}. It knows {"; ".join(t.head_names for t in TAPS)}'
    )


__all__ = [
    'TAPS',
    'Activation',
    'CascadeRoIHeadTap',
    'ClassifierSamples',
    'DenseHeadTap',
    'Geometry',
    'RoIHeadTap',
    'Tap',
    'YOLOXHeadTap',
    'check_geometry',
    'find_tap',
]
