"""The two-stage detectors that the tests of all detectors are parametrised over."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import helpers
import torch
from cases import Captured, Case, Head
from mmdet.structures.bbox import bbox2roi
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from torch import Tensor, nn

SEGMENTATION = 5  # classes of the semantic branch of HTC and SCNet
_SIZES = {2048: 32, 1024: 32, 576: 18, 256: 16}


def small(config: str, base_channels: int = 8, **changes: Any) -> ConfigDict:
    """The model of an mmdet config with every size turned down.

    Args:
        config: Without ``mmdet::``.
        base_channels: Of the small ResNet that takes the place of its backbone.
        changes: Merged into the model.
    """
    model = copy.deepcopy(get_config(f'mmdet::{config}').model)
    _turn_down(model)
    model.backbone.update(
        depth=helpers.SMALL_RESNET,
        base_channels=base_channels,
        init_cfg=None,
        frozen_stages=-1,
        norm_cfg=dict(type='BN', requires_grad=True),
    )
    neck = model.get('neck')
    if neck is not None:
        first = neck[0] if isinstance(neck, list) else neck
        first.in_channels = [base_channels * 2**i for i in range(4)]
    model.train_cfg.rpn_proposal.update(nms_pre=100, max_per_img=50)
    stages = model.train_cfg.rcnn
    for stage in stages if isinstance(stages, list) else [stages]:
        stage.sampler.num = 32
    _merge(model, changes)
    return model


def _turn_down(cfg: Any) -> None:
    """Fewer channels, layers and classes, one sample a bin of RoIAlign, everywhere in a config."""
    if isinstance(cfg, list):
        for item in cfg:
            _turn_down(item)
    if not isinstance(cfg, dict):
        return
    for key, value in cfg.items():
        if key.endswith('channels') and isinstance(value, int):
            cfg[key] = _SIZES.get(value, value)
        elif key == 'num_classes':
            cfg[key] = SEGMENTATION if value == 183 else len(helpers.CLASSES)
        elif key in ('sampling_ratio', 'num_convs'):
            cfg[key] = 1
        else:
            _turn_down(value)


def _merge(cfg: Any, changes: Mapping[str, Any]) -> None:
    """Merges into a dict, or into every dict of a list."""
    if isinstance(cfg, list):
        for item in cfg:
            _merge(item, changes)
        return
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(cfg.get(key), (Mapping, list)):
            _merge(cfg[key], value)
        else:
            cfg[key] = value


def box_heads(detector: nn.Module) -> list[nn.Module]:
    head = detector.roi_head.bbox_head
    return list(head) if isinstance(head, nn.ModuleList) else [head]


def capture(case: Case, student: nn.Module, teacher: nn.Module) -> list[Captured]:
    """See :class:`cases.Head`; the teacher answers with mmdet's own ``_bbox_forward``."""
    roi_head, heads = student.roi_head, box_heads(student)
    targets: list[dict[str, Tensor]] = [{} for _ in heads]
    for head, target in zip(heads, targets):
        head.loss_cls.register_forward_hook(
            lambda m, args, output, target=target: target.update(
                student=args[0].detach(), labels=args[1], weights=args[2] if args[2:] else None
            )
        )
    rois: dict[int, Tensor] = {}
    plain_loss = roi_head.bbox_loss

    def bbox_loss(*args: Any, **kwargs: Any) -> dict[str, Any]:
        given = inspect.signature(plain_loss).bind(*args, **kwargs).arguments
        boxes = [result.priors for result in given['sampling_results']]
        rois[given.get('stage', 0)] = bbox2roi(boxes).clone()
        return plain_loss(*args, **kwargs)

    roi_head.bbox_loss = bbox_loss
    helpers.loss(student, case.batch())

    stages = case.teacher_options.get('stages', range(len(heads)))
    is_cascade = isinstance(roi_head.bbox_head, nn.ModuleList)
    with torch.no_grad():
        data = teacher.data_preprocessor(copy.deepcopy(case.batch()), False)
        feats = teacher.extract_feat(data['inputs'])
        answers = [answer(teacher.roi_head, feats, stages[i], rois[i]) for i in range(len(heads))]
    return [
        Captured(
            teacher=logits,
            **target,
            name=f's{stage}.' if is_cascade else '',
            factor=roi_head.stage_loss_weights[stage] if is_cascade else 1.0,
        )
        for stage, (target, logits) in enumerate(zip(targets, answers))
    ]


def answer(roi_head: nn.Module, feats: tuple[Tensor, ...], stage: int, rois: Tensor) -> Tensor:
    """Class logits of a plain RoI head, of a stage of it where it has several."""
    if not isinstance(roi_head.bbox_head, nn.ModuleList):
        return roi_head._bbox_forward(feats, rois)['cls_score']
    shared = {}
    if getattr(roi_head, 'with_semantic', False):
        shared['semantic_feat'] = roi_head.semantic_head(feats)[1]
    if getattr(roi_head, 'with_glbctx', False):
        shared['glbctx_feat'] = roi_head.glbctx_head(feats)[1]
    return roi_head._bbox_forward(stage, feats, rois, **shared)['cls_score']


def take_rois_away(detector: nn.Module) -> None:
    samplers = detector.roi_head.bbox_sampler
    for sampler in samplers if isinstance(samplers, list) else [samplers]:
        sampler.num = 0
        sampler.add_gt_as_proposals = False


ROI_HEAD = Head(
    classifiers=lambda detector: [head.fc_cls for head in box_heads(detector)],
    capture=capture,
    not_asked='rpn_head|mask|fc_reg|reg_|grid|point_head|res_block|conv_branch|relay',
    take_samples_away=take_rois_away,
)
# mmdet's own loss of these heads fails where there is no RoI at all.
NEEDS_ROIS = replace(ROI_HEAD, take_samples_away=None)


def case(name: str, config: str, teacher: str | None = None, **options: Any) -> Case:
    """A case of a config's model and the same, or another config's, twice as wide."""
    changes = options.pop('changes', {})
    options.setdefault('head', ROI_HEAD)
    return Case(
        name=name,
        student=small(config, **changes),
        teacher=small(teacher or config, **{'base_channels': 16, **({} if teacher else changes)}),
        **options,
    )


MASKS = dict(masks=True)
CASCADE = 'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py'
FASTER = 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'

CASES: list[Case] = [
    case('Faster R-CNN', FASTER),
    case('Mask R-CNN', 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', batch_options=MASKS),
    case('Cascade R-CNN', CASCADE),
    case(
        'Cascade Mask R-CNN',
        'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
        batch_options=MASKS,
    ),
    case(
        'HTC',
        'htc/htc_r50_fpn_1x_coco.py',
        batch_options=dict(masks=True, segmentation=SEGMENTATION),
        head=NEEDS_ROIS,
    ),
    case(
        'HTC without semantic branch',
        'htc/htc-without-semantic_r50_fpn_1x_coco.py',
        batch_options=MASKS,
        head=NEEDS_ROIS,
    ),
    case('Dynamic R-CNN', 'dynamic_rcnn/dynamic-rcnn_r50_fpn_1x_coco.py'),
    case(
        'Double-Head R-CNN',
        'double_heads/dh-faster-rcnn_r50_fpn_1x_coco.py',
        changes=dict(roi_head=dict(bbox_head=dict(num_convs=4))),
        head=NEEDS_ROIS,
    ),
    case(
        'Cascade R-CNN by Faster R-CNN',
        CASCADE,
        FASTER,
        teacher_options=dict(stages=[0, 0, 0]),
    ),
    case(
        'Faster R-CNN by the last stage of Cascade R-CNN',
        FASTER,
        CASCADE,
        teacher_options=dict(stages=[2]),
    ),
]

SEMANTIC = dict(masks=True, segmentation=SEGMENTATION)

# Heads that the taps are tried on, beside those of the detectors above.
READ: list[Case] = [
    case('PISA', 'pisa/faster-rcnn_r50_fpn_pisa_1x_coco.py'),
    case('Mask Scoring', 'ms_rcnn/ms-rcnn_r50_fpn_1x_coco.py', batch_options=MASKS),
    case('PointRend', 'point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py', batch_options=MASKS),
    case(
        'Grid',
        'grid_rcnn/grid-rcnn_r50_fpn_gn-head_2x_coco.py',
        changes=dict(roi_head=dict(grid_head=dict(point_feat_channels=4, num_convs=1))),
    ),
    case(
        'SCNet',
        'scnet/scnet_r50_fpn_1x_coco.py',
        # A residual block has two convolutions.
        changes=dict(roi_head=dict(semantic_head=dict(num_convs=2), glbctx_head=dict(num_convs=2))),
        batch_options=SEMANTIC,
    ),
    case('SABL', 'sabl/sabl-faster-rcnn_r50_fpn_1x_coco.py'),
    case('SABL cascade', 'sabl/sabl-cascade-rcnn_r50_fpn_1x_coco.py'),
    case('Libra', 'libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco.py'),
    case('GroIE', 'groie/faste-rcnn_r50_fpn_groie_1x_coco.py'),
    case('OHEM', 'faster_rcnn/faster-rcnn_r50_fpn_ohem_1x_coco.py'),
    case(
        '4 convs, 1 fc, class-agnostic boxes',
        FASTER,
        changes=dict(
            roi_head=dict(
                bbox_head=dict(
                    type='Shared4Conv1FCBBoxHead',
                    conv_out_channels=16,
                    norm_cfg=dict(type='GN', num_groups=4),
                    reg_class_agnostic=True,
                )
            )
        ),
    ),
    case(
        'Branches of their own',
        FASTER,
        changes=dict(
            roi_head=dict(
                bbox_head=dict(
                    type='ConvFCBBoxHead',
                    num_cls_fcs=1,
                    num_reg_convs=1,
                    num_reg_fcs=1,
                    conv_out_channels=16,
                )
            )
        ),
    ),
    case(
        'One extractor for boxes and masks',
        'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
        changes=dict(
            roi_head=dict(mask_roi_extractor=None),
            train_cfg=dict(rcnn=dict(mask_size=14)),
        ),
        batch_options=MASKS,
    ),
    case(
        'C4 with a shared head',
        'faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py',
        changes=dict(
            base_channels=64,
            rpn_head=dict(in_channels=256),
            roi_head=dict(
                shared_head=dict(depth=helpers.SMALL_RESNET),
                bbox_roi_extractor=dict(out_channels=256, roi_layer=dict(output_size=4)),
                bbox_head=dict(in_channels=512, roi_feat_size=2),
            ),
        ),
    ),
]
