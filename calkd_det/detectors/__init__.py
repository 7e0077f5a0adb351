"""Distilled detectors: mmdet's own classes with the distillation mixin."""

from calkd_det.detectors.distillation import DistillationMixin
from calkd_det.detectors.single_stage import (
    CalKDATSS,
    CalKDFCOS,
    CalKDGFL,
    CalKDRetinaNet,
    CalKDRTMDet,
    CalKDYOLOX,
)
from calkd_det.detectors.two_stage import (
    CalKDCascadeRCNN,
    CalKDFasterRCNN,
    CalKDHybridTaskCascade,
    CalKDMaskRCNN,
)

__all__ = [
    'CalKDATSS',
    'CalKDCascadeRCNN',
    'CalKDFCOS',
    'CalKDFasterRCNN',
    'CalKDGFL',
    'CalKDHybridTaskCascade',
    'CalKDMaskRCNN',
    'CalKDRTMDet',
    'CalKDRetinaNet',
    'CalKDYOLOX',
    'DistillationMixin',
]
