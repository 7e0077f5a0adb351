"""Small pairs of single-stage detectors, for the tests of all detectors."""

from __future__ import annotations

import copy
from typing import Any

import helpers
import torch
from cases import Captured, Case, Head
from helpers import CLASSES
from mmdet.models.dense_heads import RTMDetHead
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from torch import Tensor, nn

NUM_CLASSES = len(CLASSES)
ZOO = {
    'RetinaNet': 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
    'FCOS': 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py',
    'ATSS': 'mmdet::atss/atss_r50_fpn_1x_coco.py',
    'GFL': 'mmdet::gfl/gfl_r50_fpn_1x_coco.py',
    'RTMDet': 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'YOLOX': 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
    'RTMDet-Ins': 'mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py',
    'SABL RetinaNet': 'mmdet::sabl/sabl-retinanet_r50_fpn_1x_coco.py',
    'RetinaNet, BatchNorm by level': 'mmdet::nas_fpn/retinanet_r50_fpn_crop640-50e_coco.py',
    'DDOD': 'mmdet::ddod/ddod_r50_fpn_1x_coco.py',
    'FoveaBox': 'mmdet::foveabox/fovea_r50_fpn_4xb4-1x_coco.py',
    'CondInst': 'mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py',
    'NAS-FCOS': 'mmdet::nas_fcos/nas-fcos_r50-caffe_fpn_nashead-gn-head_4xb4-1x_coco.py',
}
# Detectors whose heads the taps are tried on, beside those of CASES; with options of the batch.
READ_ONLY: dict[str, dict[str, Any]] = {
    'DDOD': {},
    'FoveaBox': {},
    'CondInst': dict(masks=True),
    # Deformable convolutions need maps of 3 x 3 cells.
    'NAS-FCOS': dict(sizes=[(192, 192), (160, 192)]),
}


def detector_config(name: str, width: int = 8, **head: Any) -> ConfigDict:
    """A detector of mmdet's model zoo with every size turned down.

    Args:
        name: A key of ``ZOO``.
        width: Channels of the backbone's first stage, a multiple of 8.
        head: Further keys of the head; None removes one.
    """
    model = get_config(ZOO[name]).model
    if name in ('RTMDet', 'RTMDet-Ins', 'YOLOX'):
        _shrink_csp(model, width)
    else:
        _shrink_resnet(model, width)
    # Sizes that are large or drawn by chance; tests of their own look at those.
    model.data_preprocessor.batch_augments = None
    if name == 'RTMDet-Ins':  # whose own pipeline gives images of one size
        model.data_preprocessor.pad_mask = True
    if name == 'DDOD':  # mmcv has no deformable convolution of maps of one cell
        model.bbox_head.use_dcn = False
    if name == 'CondInst':
        model.mask_head.mask_feature_head.update(in_channels=16, feat_channels=16)
    model.bbox_head.num_classes = NUM_CLASSES
    for key, value in head.items():
        model.bbox_head[key] = value
        if value is None:
            del model.bbox_head[key]
    return model


def _shrink_resnet(model: ConfigDict, width: int) -> None:
    model.backbone.update(
        depth=helpers.SMALL_RESNET,
        base_channels=width,
        style='pytorch',
        init_cfg=None,
        frozen_stages=-1,
    )
    model.backbone.norm_cfg.requires_grad = True
    model.neck.update(in_channels=[width * 2**i for i in range(4)], out_channels=16)
    # Its neck needs larger maps than its head, and its last level larger images.
    if model.type == 'NASFCOS':
        model.neck.update(type='FPN', num_outs=4, norm_cfg=None, conv_cfg=None)
        model.bbox_head.update(
            strides=[8, 16, 32, 64], regress_ranges=((-1, 64), (64, 128), (128, 256), (256, 1e8))
        )
    model.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=1)
    if model.type not in ('RetinaNet', 'FOVEA'):
        model.bbox_head.norm_cfg = dict(type='GN', num_groups=4, requires_grad=True)


def _shrink_csp(model: ConfigDict, width: int) -> None:
    model.backbone.update(deepen_factor=0.1, widen_factor=width / 64, init_cfg=None)
    channels = [width * 2**i for i in (2, 3, 4)]
    model.neck.update(in_channels=channels, out_channels=16, num_csp_blocks=1)
    model.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=1)
    # Synchronised BatchNorm trains on GPUs only.
    for part in (model.backbone, model.neck, model.bbox_head):
        if part.norm_cfg.type == 'SyncBN':
            part.norm_cfg.type = 'BN'


def classifiers(detector: nn.Module) -> list[nn.Module]:
    """The last convolution of the classification branch, of each level where they differ."""
    head = detector.bbox_head
    names = ('retina_cls', 'conv_cls', 'atss_cls', 'gfl_cls', 'rtm_cls', 'multi_level_conv_cls')
    (layer,) = [getattr(head, name) for name in names if hasattr(head, name)]
    return list(layer) if isinstance(layer, nn.ModuleList) else [layer]


def capture(case: Case, student: nn.Module, teacher: nn.Module) -> list[Captured]:
    """See :class:`cases.Head`; the teacher answers by the whole forward of its head."""
    head = student.bbox_head
    maps: list[Tensor] = []
    targets: list[tuple] = []
    avg_factors: list[Tensor | float | None] = []
    objectness: list[Tensor] = []
    for layer in classifiers(student):
        layer.register_forward_hook(lambda m, args, output: maps.append(output.detach()))

    def note(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
        targets.append((*args, kwargs.get('weight')))
        avg_factors.append(kwargs.get('avg_factor'))

    head.loss_cls.register_forward_hook(note, with_kwargs=True)
    if hasattr(head, 'loss_obj'):
        head.loss_obj.register_forward_hook(lambda m, args, output: objectness.append(args[1]))
    helpers.loss(student, case.batch())
    if objectness:
        labels, weights = _yolox_labels(maps, targets, objectness[0])
    else:
        labels = torch.cat([t[1][0] if isinstance(t[1], tuple) else t[1] for t in targets])
        given = [next((w for w in t[2:] if w is not None), None) for t in targets]
        weights = torch.ones(len(labels)) if None in given else torch.cat(given)
    avg_factor = avg_factors[0]
    if isinstance(head, RTMDetHead):
        # It divides the sum over levels, after the loss module, by the sum of the qualities.
        avg_factor = torch.cat([t[1][1] for t in targets]).sum().clamp(min=1)
    with torch.no_grad():
        data = teacher.data_preprocessor(copy.deepcopy(case.batch()), False)
        answers = teacher.bbox_head(teacher.extract_feat(data['inputs']))[0]
    cropped = [y[..., : x.shape[2], : x.shape[3]] for x, y in zip(maps, answers)]
    logits = _rows(maps), _rows(cropped, teacher.bbox_head.num_classes)
    return [Captured(*logits, labels, weights, avg_factor=avg_factor)]


def _rows(maps: list[Tensor], num_classes: int = NUM_CLASSES) -> Tensor:
    return torch.cat([x.movedim(1, -1).reshape(-1, num_classes) for x in maps])


def _yolox_labels(
    maps: list[Tensor], targets: list[tuple], objectness: Tensor
) -> tuple[Tensor, Tensor]:
    """Labels by level from targets by image; only the foreground has scores to be told."""
    foreground = objectness.squeeze(1) > 0
    labels = torch.full(foreground.shape, NUM_CLASSES)
    labels[foreground] = targets[0][1].argmax(dim=1)
    labels = labels.view(len(maps[0]), -1).split([x[0, 0].numel() for x in maps], dim=1)
    labels = torch.cat([level.reshape(-1) for level in labels])
    return labels, (labels < NUM_CLASSES).float()


DENSE_HEAD = Head(
    classifiers=classifiers,
    capture=capture,
    not_asked=r'reg|centerness|obj|scales|integral|loss',
)


def _case(student: str, teacher: str | None = None, **options: Any) -> Case:
    teacher = teacher or student
    name = student if teacher == student else f'{student} of {teacher}'
    return Case(
        name=name,
        student=detector_config(student),
        teacher=detector_config(teacher, width=16),
        head=DENSE_HEAD,
        distillation=dict(type='BinaryKDLoss'),
        **options,
    )


CASES: list[Case] = [
    _case('RetinaNet'),
    _case('FCOS'),
    _case('ATSS'),
    _case('GFL'),
    _case('RTMDet'),
    # Objects enough for every level to have some.
    _case('YOLOX', batch_options=dict(num_boxes=8)),
    _case('RTMDet-Ins', batch_options=dict(masks=True)),
    _case('SABL RetinaNet'),
    _case('RetinaNet, BatchNorm by level'),
    _case('ATSS', 'GFL'),
    _case('GFL', 'FCOS'),
]
# Heads that the taps are tried on, beside those of the detectors above.
READ: list[Case] = [_case(name, batch_options=options) for name, options in READ_ONLY.items()]
