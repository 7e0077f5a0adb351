"""Faster R-CNN with a calibrated teacher."""

from mmdet.models.detectors import FasterRCNN
from mmdet.registry import MODELS

from calkd_det.detectors.distillation import DistillationMixin


@MODELS.register_module()
class CalKDFasterRCNN(DistillationMixin, FasterRCNN):
    """mmdet's ``FasterRCNN`` plus ``teacher`` and ``distillation``.

    See :class:`~calkd_det.detectors.distillation.DistillationMixin` for both.
    """
