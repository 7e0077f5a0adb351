"""Distillation of boxes, weighted by the teacher's calibrated probability of the class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.utils import reduce_mean
from torch import Tensor

from calkd_det.knowledge import BoxPredictions
from calkd_det.losses.base import BoxLoss

# In square pixels. Dense heads may predict boxes without an area, which have no IoU.
_EPSILON = 1e-6
_L1_WEIGHT, _GIOU_WEIGHT = 5.0, 2.0


def box_kd_loss(student: BoxPredictions, teacher: BoxPredictions, weights: Tensor) -> Tensor:
    r"""Compare the boxes of foreground samples.

    .. math::
        \frac{\sum_m w_m \, (\ell_m + c_m)}{\max(1, D)}

    The distance :math:`\ell` of two boxes is

    - the mean over the four deltas of the smooth L1 distance with :math:`\beta = 1`, where both
      heads are RoI heads and their coders are equal;
    - five times the sum of the L1 distances of centre x, centre y, width and height, as shares of
      the image, plus two times 1 - GIoU, where both are heads of queries. The weights are those of
      DETR's own loss and of DETRDistill (Chang et al., `arXiv 2211.10156
      <https://arxiv.org/abs/2211.10156>`_);
    - 1 - GIoU of the decoded boxes otherwise: for dense heads, and for RoI heads whose coders
      differ.

    Where both heads predict centerness, as those of FCOS and ATSS do, :math:`c` is the
    Kullback-Leibler divergence of the student's centerness from the teacher's, as Bernoulli
    distributions. It has the gradient of binary cross-entropy and is zero where both agree.
    Otherwise :math:`c` is zero.

    The divisor follows the head's own box loss. For heads of queries D is the number of matches,
    samples with a weight above zero. For other heads it is the sum of the weights. RoI heads
    divide by the samples of their own process. That of other heads is a mean over the processes of
    a distributed training.

    Args:
        student: What the student predicts for M foreground samples.
        teacher: What the teacher predicts for the same samples. Gradients do not flow into it.
        weights: Float, shape (M,), >= 0.

    Returns:
        A float32 scalar; zero, with a graph, where there is no sample.

    Example:
        >>> import torch
        >>> rows = torch.tensor([0])
        >>> student = BoxPredictions(rows, boxes=torch.tensor([[0.0, 0.0, 10.0, 10.0]]))
        >>> teacher = BoxPredictions(rows, boxes=torch.tensor([[0.0, 0.0, 10.0, 20.0]]))
        >>> box_kd_loss(student, teacher, torch.ones(1))  # IoU 1/2, no further area enclosed
        tensor(0.5000)
    """
    if _comparable_deltas(student, teacher):
        losses = F.smooth_l1_loss(student.deltas, teacher.deltas.detach(), reduction='none')
        losses = losses.mean(dim=1)
    elif _of_queries(student, teacher):
        distances = (student.normalised - teacher.normalised.detach()).abs().sum(dim=1)
        losses = _L1_WEIGHT * distances
        losses = losses + _GIOU_WEIGHT * _giou_losses(student.boxes, teacher.boxes.detach())
    else:
        losses = _giou_losses(student.boxes, teacher.boxes.detach())
    if student.centerness is not None and teacher.centerness is not None:
        losses = losses + _bernoulli_divergence(student.centerness, teacher.centerness.detach())
    weights = weights.float().detach()
    divisor = (weights > 0).float().sum() if _of_queries(student, teacher) else weights.sum()
    if student.deltas is None:
        divisor = reduce_mean(divisor)
    return (weights * losses).sum() / divisor.clamp(min=1)


def _comparable_deltas(student: BoxPredictions, teacher: BoxPredictions) -> bool:
    both = student.deltas is not None and teacher.deltas is not None
    return both and student.coder is not None and student.coder == teacher.coder


def _of_queries(student: BoxPredictions, teacher: BoxPredictions) -> bool:
    return student.normalised is not None and teacher.normalised is not None


def _giou_losses(student: Tensor, teacher: Tensor) -> Tensor:
    """Return 1 - GIoU of pairs of boxes, shape (M,); zero for equal boxes without an area."""
    overlap = _areas(
        torch.maximum(student[:, :2], teacher[:, :2]), torch.minimum(student[:, 2:], teacher[:, 2:])
    )
    enclosed = _areas(
        torch.minimum(student[:, :2], teacher[:, :2]), torch.maximum(student[:, 2:], teacher[:, 2:])
    )
    union = _areas(*student.split(2, dim=1)) + _areas(*teacher.split(2, dim=1)) - overlap
    iou = (overlap + _EPSILON) / (union + _EPSILON)
    return 1 - iou + (enclosed - union) / (enclosed + _EPSILON)


def _areas(top_left: Tensor, bottom_right: Tensor) -> Tensor:
    return (bottom_right - top_left).clamp(min=0).prod(dim=1)


def _bernoulli_divergence(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    p = teacher_logits.sigmoid()
    log_ratio = F.logsigmoid(teacher_logits) - F.logsigmoid(student_logits)
    log_ratio_of_rest = F.logsigmoid(-teacher_logits) - F.logsigmoid(-student_logits)
    return p * log_ratio + (1 - p) * log_ratio_of_rest


@MODELS.register_module()
class BoxKDLoss(BoxLoss):
    """:func:`box_kd_loss` as a registered module, for heads of every kind whose boxes are read.

    The weight of a sample is the head's own weight times the teacher's calibrated probability of
    the class that the sample is assigned to.

    Args:
        loss_weight: Factor of the loss, >= 0. Zero switches it off.

    Raises:
        ConfigError: ``loss_weight`` is not finite or negative.
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight)

    def compute(
        self,
        student: BoxPredictions,
        teacher: BoxPredictions,
        student_scores: Tensor,
        teacher_scores: Tensor,
        labels: Tensor,
        weights: Tensor,
    ) -> Tensor:
        confidence = teacher_scores.gather(1, labels[:, None]).squeeze(1)
        return box_kd_loss(student, teacher, weights * confidence)
