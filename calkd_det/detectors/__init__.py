"""Distilled detectors: mmdet's own classes with the distillation mixin."""

from calkd_det.detectors.distillation import DistillationMixin
from calkd_det.detectors.faster_rcnn import CalKDFasterRCNN

__all__ = ['CalKDFasterRCNN', 'DistillationMixin']
