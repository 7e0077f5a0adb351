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
    'ATSSVLFusionHead': (
        'its classes are words of a text, and it compares locations with features of the text'
    ),
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
    'CornerHead': 'it finds corners on heat maps, whose targets are no labels',
    'CenterNetHead': 'it finds centres on heat maps, whose targets are no labels',
    'CenterNetUpdateHead': 'it finds centres on heat maps, whose targets are no labels',
    'RepPointsHead': 'its classifier reads features at points that its box branch chooses',
    # Heads that match queries
    'GroundingDINOHead': 'its classes are the words of a text, of which each image may have others',
    # Heads without boxes or without classes
    'RPNHead': 'it tells objects from background, and no class from another',
    'CascadeRPNHead': 'it tells objects from background, and no class from another',
    'GARPNHead': 'it tells objects from background, and no class from another',
    'SOLOHead': 'it classifies the cells of grids by the masks whose centre they hold',
    'SOLOV2Head': 'it classifies the cells of grids by the masks whose centre they hold',
    # Losses of box heads
    'SeesawLoss': (
        'its logits are classes and objectness side by side, not one softmax over classes and '
        'background'
    ),
}

# Backbones whose feature maps cannot be compared.
REFUSED_BACKBONES: dict[str, str] = {
    'TridentResNet': (
        'in training its backbone has several branches, which make several maps of each image, '
        'and in prediction one'
    ),
}

# Heads that a tap can read with other settings.
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


# Heads whose classes a tap can read, but not their boxes.
_BOXES_REFUSED: dict[str, str] = {
    **dict.fromkeys(
        ('SABLHead', 'SABLRetinaHead'),
        'it chooses among buckets along each side of a box, through which no gradient flows',
    ),
    'GridRoIHead': 'its boxes come from heat maps of a grid branch, not from its box head',
    'MaskFormerHead': 'its queries predict masks and no boxes',
}


def reason_against_boxes(detector: nn.Module) -> str:
    """Return why the boxes of a detector whose classes can be read are refused, as a clause."""
    for head in _heads_and_box_heads(detector):
        for cls in type(head).__mro__:
            if cls.__name__ in _BOXES_REFUSED:
                return _BOXES_REFUSED[cls.__name__]
    if any(getattr(head, 'with_reg', True) is False for head in _heads_and_box_heads(detector)):
        return 'its box head has with_reg=False and predicts none'
    return (
        'how it decodes them is not known; a Tap of its own can tell, register_tap(MyTap()), with '
        "'box' among its kinds"
    )


def reason_against_features(detector: nn.Module) -> str | None:
    """Return why a detector's feature maps are refused, as a clause for the user; None if not."""
    backbone = getattr(detector, 'backbone', None)
    return next(
        (
            REFUSED_BACKBONES[cls.__name__]
            for cls in type(backbone).__mro__
            if cls.__name__ in REFUSED_BACKBONES
        ),
        None,
    )


def reason_against(detector: nn.Module) -> str | None:
    """Return why a detector's head is refused, as a clause for the user; None if unknown."""
    return next(_reasons(detector), None)


def describe_heads(detector: nn.Module) -> str:
    """Return the class names of a detector's heads, or of its parts where it has no head.

    Returns:
        The RoI head or the dense head alone where there is one, because it is what classifies.
    """
    head = _main_head(detector)
    if head is not None:
        return type(head).__name__
    parts = {name: type(part).__name__ for name, part in detector.named_children()}
    heads = {name: part for name, part in parts.items() if name.endswith('head')}
    named = ', '.join(f'{part} as its {name}' for name, part in (heads or parts).items())
    return named if heads else f'no head of its own, but {named or "no parts at all"}'


def _main_head(detector: nn.Module) -> nn.Module | None:
    heads = (getattr(detector, name, None) for name in ('roi_head', 'bbox_head'))
    return next((head for head in heads if head is not None), None)


def _reasons(detector: nn.Module) -> Iterator[str]:
    losses = [head.loss_cls for head in _box_heads(detector) if hasattr(head, 'loss_cls')]
    for module in (*_heads_and_box_heads(detector), *losses):
        if reason := _SETTINGS.get(type(module).__name__):
            yield reason
        # A subclass is refused for the reason of its base class.
        yield from (
            REFUSED[cls.__name__] for cls in type(module).__mro__ if cls.__name__ in REFUSED
        )
    if any(getattr(loss, 'use_sigmoid', False) for loss in losses):
        yield _SIGMOID_ROI_HEAD


def _heads_and_box_heads(detector: nn.Module) -> list[nn.Module]:
    """Return the main head of a detector, or all its heads, and the box heads of its RoI head."""
    main_head = _main_head(detector)
    heads = [
        head
        for name, child in detector.named_children()
        if (child is main_head if main_head is not None else name.endswith('head'))
        for head in _iterate_heads(child)
    ]
    return [*heads, *_box_heads(detector)]


def _box_heads(detector: nn.Module) -> list[nn.Module]:
    roi_head = getattr(detector, 'roi_head', None)
    return list(_iterate_heads(getattr(roi_head, 'bbox_head', None)))


def _iterate_heads(module: nn.Module | None) -> Iterable[nn.Module]:
    if module is None:
        return ()
    return module if isinstance(module, nn.ModuleList) else (module,)
