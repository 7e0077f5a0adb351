"""Small pairs of mask transformers, for the tests of all detectors."""

from __future__ import annotations

from functools import partial
from typing import Any

import helpers
import torch
from cases import Captured, Case, Head
from helpers import CLASSES
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from query_cases import run
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, interpolate

NUM_CLASSES = len(CLASSES)
ZOO = {
    'MaskFormer': 'mmdet::maskformer/maskformer_r50_ms-16xb1-75e_coco.py',
    'Mask2Former': 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
}
SIZES = dict(
    embed_dims=16,
    num_heads=2,
    feedforward_channels=24,
    num_feats=8,
    feat_channels=16,
    out_channels=16,
    num_groups=4,
    dropout=0.0,
    ffn_drop=0.0,
)


def detector_config(
    name: str, width: int = 8, queries: int = 12, layers: int = 2, **changes: Any
) -> ConfigDict:
    """A detector of mmdet's model zoo with every size turned down, without dropout and stuff.

    Args:
        name: A key of ``ZOO``.
        width: Channels of the backbone's first stage.
        queries: Number of queries.
        layers: Number of decoder layers.
        changes: Further keys of the model.
    """
    model = get_config(ZOO[name]).model
    model.backbone.update(
        depth=18, base_channels=width, style='pytorch', init_cfg=None, frozen_stages=-1
    )
    model.backbone.norm_cfg.requires_grad = True
    model.data_preprocessor.pop('batch_augments', None)
    head = model.panoptic_head
    _shrink(head)
    head.update(
        in_channels=[width * 2**stage for stage in range(4)],
        num_queries=queries,
        num_things_classes=NUM_CLASSES,
        num_stuff_classes=0,
    )
    head.loss_cls.class_weight = [1.0] * NUM_CLASSES + [0.1]
    head.pixel_decoder.encoder.num_layers = 1
    head.transformer_decoder.num_layers = layers
    model.panoptic_fusion_head.update(num_things_classes=NUM_CLASSES, num_stuff_classes=0)
    if 'num_points' in model.train_cfg:
        model.train_cfg.num_points = 64
    model.test_cfg.update(panoptic_on=False, instance_on=True, max_per_image=queries)
    model.update(changes)
    return model


def _shrink(cfg: Any) -> None:
    if isinstance(cfg, dict):
        cfg.update({key: value for key, value in SIZES.items() if key in cfg})
        for value in cfg.values():
            _shrink(value)


def classifiers(detector: nn.Module) -> list[nn.Module]:
    """The classifier, which all decoder layers share."""
    return [detector.panoptic_head.cls_embed]


def capture(case: Case, student: nn.Module, teacher: nn.Module) -> list[Captured]:
    """See :class:`cases.Head`; queries are matched pair by pair, in float64."""
    outputs: dict[nn.Module, list[Tensor]] = {}
    for detector in (student, teacher):
        detector.panoptic_head.register_forward_hook(
            lambda m, args, output: outputs.update({m: [each[-1].detach() for each in output]})
        )
    targets: list[tuple] = []
    student.panoptic_head.loss_cls.register_forward_hook(
        lambda m, args, kwargs, output: targets.append((*args, kwargs)), with_kwargs=True
    )
    helpers.loss(student, case.batch())
    with torch.no_grad():
        teacher.test_step(case.batch())
    own, other = outputs[student.panoptic_head], outputs[teacher.panoptic_head]
    _, labels, weights, kwargs = targets[-1]
    answers, matched = [], []
    for image in range(len(own[0])):
        pairs = _match(*(x[image] for x in (*own, *other)))
        rows = range(own[0].shape[1])
        answers.append(other[0][image][[pairs.get(row, 0) for row in rows]])
        matched += [float(row in pairs) for row in rows]
    return [
        Captured(
            own[0].flatten(0, 1),
            torch.cat(answers),
            labels,
            weights * torch.tensor(matched),
            avg_factor=float(kwargs['avg_factor']),
        )
    ]


def _match(
    logits: Tensor, masks: Tensor, teacher_logits: Tensor, teacher_masks: Tensor
) -> dict[int, int]:
    """The teacher's query of each query of an image, at the default temperature of 1.5."""
    scores = _of_own_classes((teacher_logits.double() / 1.5).softmax(dim=1))
    targets = teacher_masks.double()
    if targets.shape[1:] != masks.shape[1:]:
        targets = interpolate(targets[None], masks.shape[1:], mode='bilinear')[0]
    cost = torch.zeros(len(logits), len(scores), dtype=torch.double)
    for row, (z, mask) in enumerate(zip(logits.double(), masks.double())):
        for column, (p, target) in enumerate(zip(scores, targets.sigmoid())):
            cost[row, column] = cross_entropy(z, p) + 2.5 * mask_cost(mask, target)
    return dict(zip(*(index.tolist() for index in linear_sum_assignment(cost))))


def mask_cost(mask: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy and Dice of the logits of a mask with scores."""
    score = mask.sigmoid()
    dice = 1 - (2 * (score * target).sum() + 1) / (score.sum() + target.sum() + 1)
    return binary_cross_entropy_with_logits(mask, target) + dice


def _of_own_classes(scores: Tensor) -> Tensor:
    """Of a teacher of the classes bird, horse, cat and dog those of cat, dog and bird."""
    if scores.shape[1] == NUM_CLASSES + 1:
        return scores
    return torch.cat([scores[:, [2, 3, 0]], scores[:, [1, 4]].sum(dim=1, keepdim=True)], dim=1)


MASK_HEAD = Head(
    classifiers=classifiers,
    capture=capture,
    not_asked=r'loss|fusion',
    run=run,
    optimizer=partial(torch.optim.Adam, lr=0.0005),
    tolerance=1e-4,
    not_counted=r'^$|attn\.attn(\.out_proj)?$|query_(embed|feat)$|level_(embed|encoding)$',
)


def _case(name: str) -> Case:
    return Case(
        name=name,
        student=detector_config(name),
        # More queries and layers than the student's. It is as wide, because there is no neck, and
        # maps of the backbone are compared channel by channel.
        teacher=detector_config(name, queries=16, layers=3),
        head=MASK_HEAD,
        distillation=dict(type='KDLoss'),
        batch_options=dict(masks=True),
    )


CASES: list[Case] = [_case(name) for name in ZOO]
