"""Heads and losses of mmdet that no tap can read, with the reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

REFUSED: dict[str, str] = {
    # RoI heads
    'MultiInstanceRoIHead': (
        'each RoI has several predictions, matched to a set of objects, and no label of its own'
    ),
    'SparseRoIHead': (
        "its classifier reads features of the detector's own queries, which a teacher cannot be "
        "asked about on another one's boxes"
    ),
    'TridentRoIHead': (
        'each branch of its backbone samples RoIs of its own, on features that no other detector '
        'has'
    ),
    # Dense heads
    'AutoAssignHead': 'it weighs all locations within an object, and none has a label',
    'FreeAnchorRetinaHead': 'it learns from bags of anchors, and no anchor has a label',
    'FSAFHead': (
        'it chooses the level of each object by the loss, so that no sample has a label before'
    ),
    'GARetinaHead': 'it makes its own anchors, about which no other detector can be asked',
    'LADHead': 'its labels are made by a teacher of its own',
    'LDHead': 'it is distilled by a teacher of its own; take GFLHead',
    'PAAHead': 'it computes the loss of its classifier twice, to choose labels by the first',
    'PISARetinaHead': 'it computes the loss of its classifier twice, to weigh samples by the first',
    'SSDHead': 'it mines its background by the loss, so that no sample has a weight before',
    'TOODHead': 'it gives probabilities that its box branch has a part in, and no logits',
    'VFNetHead': 'its classifier reads features at points that its box branch chooses',
    'YOLACTHead': 'it mines its background by the loss, so that no sample has a weight before',
    'YOLOFHead': 'its class scores are made of those of an objectness branch',
    'YOLOV3Head': 'classes, boxes and objectness are channels of one map, and no branch is theirs',
    # Losses of box heads
    'SeesawLoss': (
        'its logits are classes and objectness side by side, not one softmax over classes and '
        'background'
    ),
}

# Heads that are read with other settings.
_SETTINGS: dict[str, str] = {
    **dict.fromkeys(
        ('ATSSHead', 'DDODHead', 'FCOSHead', 'GFLHead', 'RetinaHead'),
        'its loss_cls must have use_sigmoid=True',
    ),
    **dict.fromkeys(
        ('RTMDetHead', 'RTMDetSepBNHead'),
        'its objectness branch has a part in the class scores; take with_objectness=False',
    ),
    'FoveaHead': 'its box branch has a part in the class scores; take with_deform=False',
}

_SIGMOID_ROI_HEAD = (
    'its loss_cls has use_sigmoid=True, so it is trained by a sigmoid and predicts by a softmax, '
    'and there is no one kind of score to compare; take use_sigmoid=False'
)


def reason_against(detector: nn.Module) -> str | None:
    """Why a detector's head was refused, a clause for the user; None where it was not tried."""
    return next(_reasons(detector), None)


def _reasons(detector: nn.Module) -> Iterator[str]:
    heads = [
        head for name in ('roi_head', 'bbox_head') for head in _all(getattr(detector, name, None))
    ]
    roi_head = getattr(detector, 'roi_head', None)
    box_heads = list(_all(getattr(roi_head, 'bbox_head', None)))
    losses = [head.loss_cls for head in box_heads if hasattr(head, 'loss_cls')]
    for module in (*heads, *box_heads, *losses):
        name = type(module).__name__
        if reason := REFUSED.get(name) or _SETTINGS.get(name):
            yield reason
    if any(getattr(loss, 'use_sigmoid', False) for loss in losses):
        yield _SIGMOID_ROI_HEAD


def _all(module: nn.Module | None) -> Iterable[nn.Module]:
    if module is None:
        return ()
    return module if isinstance(module, nn.ModuleList) else (module,)
