"""Distilled detectors: mmdet's own classes with the distillation mixin.

For each detector class that mmdet registers there is one whose name is ``CalKD`` followed by its
name, such as ``CalKDFasterRCNN``.
"""

from calkd_det.detectors.distillation import DistillationMixin
from calkd_det.detectors.registered import make_counterparts, register_distilled
from calkd_det.detectors.undistillable import UndistillableDetector

_counterparts = make_counterparts(__name__)
globals().update(_counterparts)

__all__ = ['DistillationMixin', 'UndistillableDetector', 'register_distilled', *_counterparts]
