"""Match the queries of a student to those of its teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps
from torch import Tensor

from calkd_det.knowledge import Activation
from calkd_det.taps.assignment import EXCLUDED, NON_FINITE, assign

# Weights of scores, L1 distance and GIoU, those of DETR's own assigner and of DETRDistill.
CLASS_COST, L1_COST, GIOU_COST = 1.0, 5.0, 2.0
# Weights of the cross-entropy of masks and of Dice beside them, as in Mask2Former's own assigner.
MASK_COST, DICE_COST = 2.5, 2.5


@dataclass(frozen=True)
class Queries:
    """What the queries of a batch predict.

    Attributes:
        logits: Class logits, float, shape (B, Q, K).
        boxes: Centre x, centre y, width and height as shares of the image, shape (B, Q, 4).
        counted: Which queries count, bool, shape (B, Q); None where all do.
    """

    logits: Tensor
    boxes: Tensor
    counted: Tensor | None = None

    def place_costs(self, teacher: Queries) -> Tensor:
        """Return 5 times the L1 distance of each pair of boxes minus 2 times their GIoU.

        Returns:
            Costs, float32, shape (B, Q, Q').
        """
        boxes, target_boxes = self.boxes.float(), teacher.boxes.float()
        distance = torch.cdist(boxes, target_boxes, p=1)
        # GIoU is the same for boxes in pixels.
        giou = bbox_overlaps(
            bbox_cxcywh_to_xyxy(boxes), bbox_cxcywh_to_xyxy(target_boxes), mode='giou'
        )
        return L1_COST * distance - GIOU_COST * giou


@dataclass(frozen=True)
class MaskQueries:
    """What the queries of a batch predict where they predict masks.

    Attributes:
        logits: Class logits, float, shape (B, Q, K).
        masks: Logits of the masks, float, shape (B, Q, h, w).
        counted: See :class:`Queries`.
    """

    logits: Tensor
    masks: Tensor
    counted: Tensor | None = None

    def place_costs(self, teacher: MaskQueries) -> Tensor:
        """Return 2.5 times the mean cross-entropy of each pair of masks plus 2.5 times their Dice.

        The teacher's scores are the target. Its masks are resized where they are of another size.

        Returns:
            Costs, float32, shape (B, Q, Q').
        """
        masks, targets = self.masks.float(), teacher.masks.float()
        if targets.shape[2:] != masks.shape[2:]:
            targets = F.interpolate(targets, masks.shape[2:], mode='bilinear', align_corners=False)
        masks, targets = masks.flatten(2), targets.flatten(2).sigmoid()
        scores, transposed = masks.sigmoid(), targets.transpose(1, 2)
        cross_entropy = F.softplus(masks).mean(dim=2, keepdim=True)
        cross_entropy = cross_entropy - masks @ transposed / masks.shape[2]
        areas = scores.sum(dim=2)[:, :, None] + targets.sum(dim=2)[:, None]
        dice = 1 - (2 * scores @ transposed + 1) / (areas + 1)
        return MASK_COST * cross_entropy + DICE_COST * dice


Predicted = TypeVar('Predicted', Queries, MaskQueries)


@torch.no_grad()
def match_queries(student: Predicted, teacher: Predicted, activation: Activation) -> Tensor:
    """Find for each query of the student its own query of the teacher.

    The sum of :func:`matching_costs` over all pairs is least, by the Hungarian method, for each
    image apart. Every query of the network with fewer queries is matched. On a GPU the host waits
    once, for the costs of the whole batch.

    Args:
        student: B images with Q queries each.
        teacher: The same images with Q' queries each. Logits are calibrated and over the
            student's classes.
        activation: How both turn logits into scores.

    Returns:
        Index of the teacher's query, int64, shape (B, Q), on the device of the student's logits;
        -1 for a query without one.
    """
    costs = matching_costs(student, teacher, activation).nan_to_num(NON_FINITE, NON_FINITE)
    for queries, dim in ((student, 2), (teacher, 1)):
        if queries.counted is not None:
            costs = costs.masked_fill(~queries.counted.unsqueeze(dim), EXCLUDED)
    return assign(costs).to(student.logits.device, non_blocking=True)


def matching_costs(student: Predicted, teacher: Predicted, activation: Activation) -> Tensor:
    """Return the cost of matching each pair of queries.

    It is the cross-entropy of the student's scores with those of the teacher as the target, summed
    over classes, plus the cost of boxes or masks, see :meth:`Queries.place_costs` and
    :meth:`MaskQueries.place_costs`. Of boxes they are the costs of DETRDistill (Chang et al.,
    `arXiv 2211.10156 <https://arxiv.org/abs/2211.10156>`_).

    Args:
        student: See :func:`match_queries`.
        teacher: See there.
        activation: See there.

    Returns:
        Costs, float32, shape (B, Q, Q').
    """
    with torch.autocast(student.logits.device.type, enabled=False):
        logits, targets = student.logits.float(), teacher.logits.float()
        if activation == 'sigmoid':
            scores = targets.sigmoid().transpose(1, 2)
            likelihood = F.logsigmoid(logits) @ scores + F.logsigmoid(-logits) @ (1 - scores)
        else:
            likelihood = logits.log_softmax(dim=2) @ targets.softmax(dim=2).transpose(1, 2)
        return -CLASS_COST * likelihood + student.place_costs(teacher)
