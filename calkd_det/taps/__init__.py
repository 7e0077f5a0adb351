"""Taps: one file and one entry in :data:`TAPS` for each family of heads."""

from __future__ import annotations

from calkd_det.taps.base import Tap
from calkd_det.taps.cascade_roi_head import CascadeRoIHeadTap
from calkd_det.taps.dense_head import Branch, DenseHeadTap
from calkd_det.taps.geometry import Geometry, check_geometry
from calkd_det.taps.registry import (
    TAPS,
    find_tap,
    register_dense_head,
    register_roi_head,
    register_tap,
)
from calkd_det.taps.roi_head import RoIHeadTap
from calkd_det.taps.samples import Activation, ClassifierSamples
from calkd_det.taps.yolox_head import YOLOXHeadTap

__all__ = [
    'TAPS',
    'Activation',
    'Branch',
    'CascadeRoIHeadTap',
    'ClassifierSamples',
    'DenseHeadTap',
    'Geometry',
    'RoIHeadTap',
    'Tap',
    'YOLOXHeadTap',
    'check_geometry',
    'find_tap',
    'register_dense_head',
    'register_roi_head',
    'register_tap',
]
