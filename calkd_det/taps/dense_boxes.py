"""Boxes that a dense head predicts: decode those of some of its samples."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from mmdet.models.dense_heads import (
    ATSSHead,
    DDODHead,
    FCOSHead,
    FoveaHead,
    GFLHead,
    RetinaHead,
    RetinaSepBNHead,
    RTMDetHead,
    RTMDetInsHead,
    YOLOXHead,
)
from mmdet.models.dense_heads.condinst_head import CondInstBboxHead
from mmdet.structures.bbox import distance2bbox, get_box_tensor
from mmengine.config import ConfigDict
from torch import Tensor, nn

from calkd_det.knowledge import BoxPredictions

# mmdet's heads with boxes that _decode knows. Their forward returns maps of classes, then of boxes.
_DECODED = (
    ATSSHead,
    DDODHead,
    FCOSHead,
    FoveaHead,
    GFLHead,
    RetinaHead,
    RetinaSepBNHead,
    RTMDetHead,
    YOLOXHead,
)
# Parts of heads that neither classes nor boxes come from.
_OTHER_PARTS = ('mask_head', 'kernel_convs', 'rtm_kernel', 'multi_level_conv_obj', 'atss_iou')


def has_readable_boxes(head: nn.Module) -> bool:
    """Return whether :func:`read_boxes` decodes the boxes of a dense head."""
    return isinstance(head, _DECODED)


def distribution_bins(head: nn.Module) -> int | None:
    """Return the number of bins that a head predicts for each side of a box; None without any."""
    return head.reg_max + 1 if isinstance(head, GFLHead) else None


def _has_centerness(head: nn.Module) -> bool:
    """Return whether a head's forward returns maps of centerness third."""
    return isinstance(head, (ATSSHead, FCOSHead)) and not isinstance(head, RTMDetHead)


def rows(maps: Tensor, columns: int) -> Tensor:
    """Return a row for each sample, (B * H * W * A, D), from maps of shape (B, A * D, H, W)."""
    return maps.permute(0, 2, 3, 1).reshape(-1, columns)


def read_boxes(
    head: nn.Module, outputs: Sequence[Sequence[Tensor]], index: Tensor
) -> BoxPredictions:
    """Decode the boxes of some samples, in float32.

    Args:
        head: A head for which :func:`has_readable_boxes` is true, in the mode that it ran in.
        outputs: What its forward returned, by kind and level, each (B, A * D, H, W).
        index: Which of all its N samples, int64, shape (M,). They are numbered by level, image,
            row, column and anchor.

    Returns:
        The predictions, with the graph of ``outputs``.
    """
    maps = outputs[1]
    bins = distribution_bins(head)
    with torch.autocast(maps[0].device.type, enabled=False):
        raw = torch.cat([rows(level, 4 * (bins or 1)) for level in maps])[index].float()
        priors = _priors(head, maps)[index]
        centerness = None
        if _has_centerness(head):
            centerness = torch.cat([level.movedim(1, -1).reshape(-1) for level in outputs[2]])
            centerness = centerness[index].float()
        return BoxPredictions(
            rows=index,
            boxes=_decode(head, raw, priors),
            distribution=None if bins is None else raw.view(-1, 4, bins),
            centerness=centerness,
        )


def _priors(head: nn.Module, maps: Sequence[Tensor]) -> Tensor:
    """Return each sample's anchor or point, the stride and the base length of its level.

    Returns:
        Float32, shape (N, 4 or 2 + 2): x1, y1, x2, y2 or x, y in pixels, then stride and base
        length in pixels.
    """
    sizes = [level.shape[-2:] for level in maps]
    generator = head.prior_generator
    grids = generator.grid_priors(sizes, dtype=torch.float32, device=maps[0].device)
    lengths = getattr(head, 'base_edge_list', [0] * len(maps))
    parts = []
    for level, grid, (stride, _), length in zip(maps, grids, generator.strides, lengths):
        grid = get_box_tensor(grid)
        scales = grid.new_tensor([stride, length]).expand(len(grid), 2)
        parts.append(torch.cat([grid, scales], dim=1).repeat(len(level), 1))
    return torch.cat(parts)


def _decode(head: nn.Module, raw: Tensor, priors: Tensor) -> Tensor:
    """Return decoded boxes, shape (M, 4), of what the box branch gives."""
    *_, stride, length = priors.split(1, dim=1)
    priors = priors[:, :-2]
    if isinstance(head, YOLOXHead):
        return head._bbox_decode(torch.cat([priors, stride, stride], dim=1), raw)
    if isinstance(head, GFLHead):
        return distance2bbox(head.anchor_center(priors), head.integral(raw) * stride)
    if isinstance(head, FoveaHead):
        return distance2bbox(priors, raw.exp() * length)
    if isinstance(head, FCOSHead):
        # With norm_on_bbox the head's forward multiplies by the stride, in eval mode alone.
        in_strides = head.norm_on_bbox and head.training
        return distance2bbox(priors, raw * stride if in_strides else raw)
    if isinstance(head, RTMDetHead):
        return distance2bbox(priors, raw)
    return get_box_tensor(head.bbox_coder.decode(priors, raw))


def drop_other_parts(head: nn.Module) -> None:
    """Replace, in place, what neither classes nor boxes come from by layers that do nothing."""
    for name in _OTHER_PARTS:
        if hasattr(head, name):
            setattr(head, name, _identity(getattr(head, name)))


def _identity(part: nn.Module) -> nn.Module:
    if isinstance(part, nn.ModuleList):
        return nn.ModuleList(map(_identity, part))
    return nn.Identity()


# Heads that predict masks too: the head without masks, and the number of its outputs.
_PLAIN_HEADS = {RTMDetInsHead: (RTMDetHead, 2), CondInstBboxHead: (FCOSHead, 3)}


def predicted_boxes(head: nn.Module, outputs: Sequence[Sequence[Tensor]]) -> Tensor:
    """Let a head itself decode the boxes of all samples.

    Its ``predict_by_feat`` sorts samples by score and clips boxes to the image. So it is given
    scores that fall from sample to sample, and a large image.

    Args:
        head: A head in eval mode.
        outputs: What its forward returned, by kind and level.

    Returns:
        Boxes, float, shape (N, 4), in the order of :func:`read_boxes`. Negative coordinates may be
        clipped to zero.
    """
    for cls, (plain, num_outputs) in _PLAIN_HEADS.items():
        if isinstance(head, cls):
            head, outputs = copy.copy(head), outputs[:num_outputs]
            head.__class__ = plain
    scores = [_falling(level, head.num_classes) for level in outputs[0]]
    batch_size = len(scores[0])
    meta = dict(img_shape=(2**20, 2**20), ori_shape=(2**20, 2**20), scale_factor=(1.0, 1.0))
    images = head.predict_by_feat(
        scores,
        outputs[1],
        *([torch.zeros_like(level) for level in levels] for levels in outputs[2:]),
        batch_img_metas=[meta] * batch_size,
        cfg=ConfigDict(score_thr=1e-30, nms_pre=2**20, max_per_img=2**20, min_bbox_size=-1),
        rescale=False,
        with_nms=False,
    )
    counts = [level.shape[1] // head.num_classes * level[0, 0].numel() for level in scores]
    by_level = zip(*(get_box_tensor(image.bboxes).split(counts) for image in images))
    return torch.cat([part for level in by_level for part in level])


def _falling(maps: Tensor, num_classes: int) -> Tensor:
    """Return logits of the shape of the maps, of which class 0 alone scores, falling by sample."""
    batch, channels, height, width = maps.shape
    count = height * width * channels // num_classes
    logits = maps.new_full((batch, count, num_classes), -200.0)
    logits[:, :, 0] = torch.linspace(4, -4, count, dtype=maps.dtype)
    return logits.view(batch, height, width, channels).permute(0, 3, 1, 2).contiguous()
