"""Taps: one file and one entry in :data:`TAPS` for each family of heads."""

from __future__ import annotations

from calkd_det.knowledge import Activation, HeadSamples
from calkd_det.taps.base import CLASS, CLASS_AND_BOX, Tap
from calkd_det.taps.cascade_roi_head import CascadeRoIHeadTap
from calkd_det.taps.dense_head import Branch, DenseHeadTap
from calkd_det.taps.feature_maps import check_maps, probe_maps
from calkd_det.taps.geometry import Geometry, check_geometry
from calkd_det.taps.knowledge_taps import KnowledgeTaps, find_taps
from calkd_det.taps.mask_queries import MaskQueryTap
from calkd_det.taps.queries import DENOISING, QueryTap
from calkd_det.taps.registry import (
    TAPS,
    find_tap,
    register_dense_head,
    register_roi_head,
    register_tap,
)
from calkd_det.taps.roi_head import RoIHeadTap
from calkd_det.taps.yolox_head import YOLOXHeadTap

__all__ = [
    'CLASS',
    'CLASS_AND_BOX',
    'DENOISING',
    'TAPS',
    'Activation',
    'Branch',
    'CascadeRoIHeadTap',
    'DenseHeadTap',
    'Geometry',
    'HeadSamples',
    'KnowledgeTaps',
    'MaskQueryTap',
    'QueryTap',
    'RoIHeadTap',
    'Tap',
    'YOLOXHeadTap',
    'check_geometry',
    'check_maps',
    'find_tap',
    'find_taps',
    'probe_maps',
    'register_dense_head',
    'register_roi_head',
    'register_tap',
]
