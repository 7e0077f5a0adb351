"""Cross-entropy with smoothed labels, to train teachers of different calibration."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from mmdet.models.losses.cross_entropy_loss import CrossEntropyLoss
from mmdet.models.losses.utils import weight_reduce_loss
from mmdet.registry import MODELS
from torch import Tensor

from calkd_det.config import check_number
from calkd_det.errors import ConfigError


@MODELS.register_module()
class SmoothedCrossEntropyLoss(CrossEntropyLoss):
    """mmdet's softmax ``CrossEntropyLoss`` whose target is (1 - s) one-hot + s / K.

    (Szegedy et al., `Rethinking the Inception Architecture for Computer Vision
    <https://arxiv.org/abs/1512.00567>`_, section 7.)

    Args:
        smoothing: s, in [0, 1); 0 is the plain loss.
        loss_weight: Factor of the loss.

    Raises:
        ConfigError: ``smoothing`` is out of range.
    """

    def __init__(self, smoothing: float = 0.1, loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight=loss_weight)
        self.smoothing = check_number(smoothing, 'loss_cls.smoothing', minimum_open=False)
        if self.smoothing >= 1:
            raise ConfigError(f'loss_cls.smoothing must be below 1, but is {smoothing}')
        self.cls_criterion = self._smoothed

    def _smoothed(
        self,
        pred: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        reduction: str = 'mean',
        avg_factor: float | None = None,
        **kwargs: Any,
    ) -> Tensor:
        loss = F.cross_entropy(pred, label, reduction='none', label_smoothing=self.smoothing)
        weight = None if weight is None else weight.float()
        return weight_reduce_loss(loss, weight, reduction=reduction, avg_factor=avg_factor)
