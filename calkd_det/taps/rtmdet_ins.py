"""Compute the losses of RTMDet-Ins on a data set without masks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from mmdet.structures import DetDataSample, SampleList
from mmdet.structures.mask import BitmapMasks
from torch import nn


@contextmanager
def without_mask_loss(head: nn.Module, data_samples: SampleList) -> Iterator[SampleList]:
    """Switch a head's mask loss off, so that annotations need no masks.

    Args:
        head: mmdet's ``RTMDetInsHead`` or a subclass.
        data_samples: Annotations of each image. They are not changed.

    Returns:
        A context manager that gives a copy of the annotations. Where they have no masks, the mask
        of an object is its whole box, because the assigner uses the centre of the mask.
    """
    data_samples = [sample.clone() for sample in data_samples]
    for sample in data_samples:
        if 'masks' not in sample.gt_instances:
            sample.gt_instances.masks = _box_masks(sample)
    head.loss_mask_by_feat = lambda mask_feats, *args: mask_feats.sum() * 0
    try:
        yield data_samples
    finally:
        del head.loss_mask_by_feat


def _box_masks(sample: DetDataSample) -> BitmapMasks:
    height, width = sample.img_shape[:2]
    boxes = sample.gt_instances.bboxes
    masks = np.zeros((len(boxes), height, width), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, getattr(boxes, 'tensor', boxes).tolist()):
        mask[int(y1) : max(int(y1) + 1, round(y2)), int(x1) : max(int(x1) + 1, round(x2))] = 1
    return BitmapMasks(masks, height, width)
