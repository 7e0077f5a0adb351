"""Single-stage detectors with a calibrated teacher; their arguments are those of the mixin."""

from mmdet.models.detectors import ATSS, FCOS, GFL, YOLOX, RetinaNet, RTMDet
from mmdet.registry import MODELS

from calkd_det.detectors.distillation import DistillationMixin


@MODELS.register_module()
class CalKDATSS(DistillationMixin, ATSS):
    """mmdet's ``ATSS`` plus ``teacher`` and ``distillation``."""


@MODELS.register_module()
class CalKDFCOS(DistillationMixin, FCOS):
    """mmdet's ``FCOS`` plus ``teacher`` and ``distillation``."""


@MODELS.register_module()
class CalKDGFL(DistillationMixin, GFL):
    """mmdet's ``GFL`` plus ``teacher`` and ``distillation``."""


@MODELS.register_module()
class CalKDRTMDet(DistillationMixin, RTMDet):
    """mmdet's ``RTMDet`` plus ``teacher`` and ``distillation``."""


@MODELS.register_module()
class CalKDRetinaNet(DistillationMixin, RetinaNet):
    """mmdet's ``RetinaNet`` plus ``teacher`` and ``distillation``."""


@MODELS.register_module()
class CalKDYOLOX(DistillationMixin, YOLOX):
    """mmdet's ``YOLOX`` plus ``teacher`` and ``distillation``."""
