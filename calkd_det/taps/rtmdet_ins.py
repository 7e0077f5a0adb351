"""RTMDet-Ins without its masks, of which a data set of boxes has none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from mmdet.structures import DetDataSample, SampleList
from mmdet.structures.mask import BitmapMasks
from torch import nn


@contextmanager
def without_mask_loss(head: nn.Module, data_samples: SampleList) -> Iterator[SampleList]:
    """Set a head's loss of masks aside, so that annotations need not have any.

    Args:
        head: mmdet's ``RTMDetInsHead`` or a subclass.
        data_samples: Annotations of each image; they are left as they are.

    Returns:
        A context manager; it gives a copy of the annotations. Where they have no masks, each is
        that of its whole box: the assigner looks for the centre of an object's mask.
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
