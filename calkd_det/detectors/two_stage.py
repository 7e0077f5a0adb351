"""Two-stage detectors with a calibrated teacher; their arguments are those of the mixin."""

from mmdet.models.detectors import CascadeRCNN, FasterRCNN, HybridTaskCascade, MaskRCNN
from mmdet.registry import MODELS

from calkd_det.detectors.distillation import DistillationMixin


@MODELS.register_module()
class CalKDCascadeRCNN(DistillationMixin, CascadeRCNN):
    """mmdet's ``CascadeRCNN`` plus ``teacher`` and ``distillation``."""


@MODELS.register_module()
class CalKDFasterRCNN(DistillationMixin, FasterRCNN):
    """mmdet's ``FasterRCNN`` plus ``teacher`` and ``distillation``."""


@MODELS.register_module()
class CalKDHybridTaskCascade(DistillationMixin, HybridTaskCascade):
    """mmdet's ``HybridTaskCascade`` plus ``teacher`` and ``distillation``."""


@MODELS.register_module()
class CalKDMaskRCNN(DistillationMixin, MaskRCNN):
    """mmdet's ``MaskRCNN`` plus ``teacher`` and ``distillation``."""
