"""Small pairs of detection transformers, for the tests of all detectors."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import helpers
import torch
from cases import Captured, Case, Head, plain_class
from helpers import CLASSES
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

NUM_CLASSES = len(CLASSES)
ZOO = {
    'DETR': 'mmdet::detr/detr_r50_8xb2-150e_coco.py',
    'Conditional DETR': 'mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
    'DAB-DETR': 'mmdet::dab_detr/dab-detr_r50_8xb2-50e_coco.py',
    'Deformable DETR': 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'Deformable DETR, box refinement': (
        'mmdet::deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco.py'
    ),
    'Deformable DETR, two-stage': (
        'mmdet::deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py'
    ),
    'DINO': 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    'DDQ': 'mmdet::ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py',
}
EMBED_DIMS = 16
# mmdet encodes the positions of their queries in so many channels, whatever the config says.
WIDE = ('Conditional DETR', 'Deformable DETR, two-stage', 'DINO')
WIDE_EMBED_DIMS = 256


def detector_config(
    name: str, width: int = 8, queries: int = 12, layers: int = 2, **changes: Any
) -> ConfigDict:
    """A detector of mmdet's model zoo with every size turned down, without dropout.

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
    stages = model.backbone.out_indices
    embed_dims = WIDE_EMBED_DIMS if name in WIDE else EMBED_DIMS
    model.neck.update(in_channels=[width * 2**stage for stage in stages], out_channels=embed_dims)
    if model.neck.get('norm_cfg'):
        model.neck.norm_cfg.num_groups = 4
    model.num_queries, model.test_cfg.max_per_img = queries, queries
    model.encoder.num_layers, model.decoder.num_layers = 1, layers
    model.positional_encoding.num_feats = embed_dims // 2
    _shrink_layers(model, embed_dims)
    model.bbox_head.num_classes = NUM_CLASSES
    model.bbox_head.embed_dims = embed_dims
    if 'dn_cfg' in model:
        model.dn_cfg.group_cfg.num_dn_queries = 8
    model.update(changes)
    return model


def distilled(
    student: ConfigDict, teacher: ConfigDict, checkpoint: Path, **options: Any
) -> nn.Module:
    """A student in train mode, taught classes and boxes at T = 1.

    Args:
        student: Its plain config.
        teacher: The teacher's.
        checkpoint: The teacher's weights.
        options: Further keys of ``model.teacher``.
    """
    cfg = copy.deepcopy(student)
    cfg.type = f'CalKD{student.type}'
    cfg.teacher = dict(
        config=dict(model=teacher.to_dict()),
        checkpoint=str(checkpoint),
        calibrator=dict(type='TemperatureScaling', temperature=1.0),
        **options,
    )
    kd = 'KDLoss' if student.type == 'DETR' else 'BinaryKDLoss'
    cfg.distillation = dict(cls=dict(type=kd), bbox=dict(type='BoxKDLoss'))
    detector = helpers.build(cfg)
    detector.dataset_meta = dict(classes=CLASSES)
    detector.init_weights()
    return detector.train()


def _shrink_layers(cfg: ConfigDict, embed_dims: int) -> None:
    """Shrink every layer within encoder and decoder, and switch its dropout off."""
    small = dict(embed_dims=embed_dims, num_heads=2, feedforward_channels=24) | dict.fromkeys(
        ('dropout', 'ffn_drop', 'attn_drop', 'proj_drop'), 0.0
    )
    for part in (cfg.encoder, cfg.decoder):
        for key in ('self_attn_cfg', 'cross_attn_cfg', 'ffn_cfg'):
            layer = part.layer_cfg.get(key)
            if layer is None:
                continue
            layer.update({name: value for name, value in small.items() if name in layer})
            if key != 'ffn_cfg':
                layer.setdefault('dropout', 0.0)
                layer.num_heads = 2
                if 'attn_drop' in layer:
                    del layer['dropout']


def classifiers(detector: nn.Module) -> list[nn.Module]:
    """The classifier of the last decoder layer."""
    head = detector.bbox_head
    if hasattr(head, 'fc_cls'):
        return [head.fc_cls]
    return [head.cls_branches[detector.decoder.num_layers - 1]]


def run(detector: nn.Module, inputs: Tensor, data_samples: list) -> None:
    """Compute the loss in train mode, predictions in eval mode, in which mmdet has no loss."""
    cls = plain_class(detector)
    (cls.loss if detector.training else cls.predict)(detector, inputs, data_samples)


def capture(case: Case, student: nn.Module, teacher: nn.Module) -> list[Captured]:
    """See :class:`cases.Head`; queries are matched pair by pair, in float64."""
    outputs: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    for detector in (student, teacher):
        detector.bbox_head.register_forward_hook(
            lambda m, args, output: outputs.update({m: [each[-1].detach() for each in output]})
        )
    targets: list[tuple] = []
    student.bbox_head.loss_cls.register_forward_hook(
        lambda m, args, kwargs, output: targets.append((*args, kwargs)), with_kwargs=True
    )
    helpers.loss(student, case.batch())
    with torch.no_grad():
        teacher.test_step(case.batch())
    own, other = outputs[student.bbox_head], outputs[teacher.bbox_head]
    # Denoising queries are the first, dense ones the last.
    start = 0
    if hasattr(student, 'dn_query_generator'):
        dense = int(student.num_queries * getattr(student, 'dense_topk_ratio', 0))
        start = own[0].shape[1] - student.num_queries - dense
    own = [each[:, start : start + student.num_queries] for each in own]
    logits, labels, weights, answers = [], [], [], []
    *_, given_labels, given_weights, kwargs = targets[student.decoder.num_layers - 1]
    for image in range(len(own[0])):
        rows, columns = _counted(student, image), _counted(teacher, image)
        pairs = _match(*(x[image][rows] for x in own), *(x[image][columns] for x in other))
        logits.append(own[0][image][rows])
        answers.append(other[0][image][columns][[pairs.get(row, 0) for row in range(len(rows))]])
        matched = torch.tensor([float(row in pairs) for row in range(len(rows))])
        labels.append(given_labels[: len(rows)])
        weights.append(given_weights[: len(rows)] * matched)
        given_labels, given_weights = given_labels[len(rows) :], given_weights[len(rows) :]
    avg_factor = float(kwargs['avg_factor'])
    return [Captured(*map(torch.cat, (logits, answers, labels, weights)), avg_factor=avg_factor)]


def _counted(detector: nn.Module, image: int) -> Tensor:
    """The queries that the loss and the predictions of the last layer are of."""
    if not hasattr(detector, 'dqs_cfg'):
        return torch.arange(detector.num_queries)
    masks = detector.cache_dict['distinct_query_mask'][-1]
    return masks[image * detector.cache_dict['num_heads']][0].nonzero().squeeze(1)


def _match(
    logits: Tensor, boxes: Tensor, teacher_logits: Tensor, teacher_boxes: Tensor
) -> dict[int, int]:
    """The teacher's query of each query of an image, at the default temperature of 1.5."""
    sigmoid = logits.shape[1] == NUM_CLASSES
    teacher_logits = _of_own_classes(teacher_logits.double() / 1.5, sigmoid)
    cost = torch.zeros(len(logits), len(teacher_logits), dtype=torch.double)
    for row, (z, box) in enumerate(zip(logits.double(), boxes.double())):
        for column, (t, target) in enumerate(zip(teacher_logits, teacher_boxes.double())):
            if sigmoid:
                ce = nn.functional.binary_cross_entropy_with_logits(z, t.sigmoid(), reduction='sum')
            else:
                ce = nn.functional.cross_entropy(z, t.softmax(dim=0))
            cost[row, column] = ce + 5 * (box - target).abs().sum() - 2 * giou(box, target)
    return dict(zip(*(index.tolist() for index in linear_sum_assignment(cost))))


def _of_own_classes(logits: Tensor, sigmoid: bool) -> Tensor:
    """Of a teacher of the classes bird, horse, cat and dog those of cat, dog and bird."""
    if logits.shape[1] == NUM_CLASSES + (not sigmoid):
        return logits
    own = logits[:, [2, 3, 0]]
    if sigmoid:
        return own
    return torch.cat([own, logits[:, [1, 4]].logsumexp(dim=1, keepdim=True)], dim=1)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """The GIoU of two boxes, each given by its centre, width and height."""
    low = torch.stack([box[:2] - box[2:] / 2 for box in (a, b)])
    high = torch.stack([box[:2] + box[2:] / 2 for box in (a, b)])
    overlap = (high.amin(dim=0) - low.amax(dim=0)).clamp(min=0).prod()
    enclosed = (high.amax(dim=0) - low.amin(dim=0)).prod()
    union = a[2:].prod() + b[2:].prod() - overlap
    return overlap / union - (enclosed - union) / enclosed


QUERY_HEAD = Head(
    classifiers=classifiers,
    capture=capture,
    not_asked=r'loss|dn_query_generator|aux_|^bbox_head\.(cls|reg)_branches\.4',
    run=run,
    optimizer=partial(torch.optim.Adam, lr=0.0005),
    tolerance=1e-4,
    not_counted=r'^$|query_embedding$|dn_query_generator|attn\.attn(\.out_proj)?$|^bbox_head\.(reg_ffn|fc_reg)\b',
)


# Adam's first steps are too long for wide layers.
WIDE_HEAD = replace(QUERY_HEAD, optimizer=partial(torch.optim.SGD, lr=0.002))


def _case(student: str, teacher: str | None = None, **options: Any) -> Case:
    teacher = teacher or student
    return Case(
        name=student if teacher == student else f'{student} of {teacher}',
        student=detector_config(student),
        # More queries and layers than the student's.
        teacher=detector_config(teacher, width=16, queries=16, layers=3),
        head=WIDE_HEAD if student in WIDE else QUERY_HEAD,
        distillation=dict(type='KDLoss' if student == 'DETR' else 'BinaryKDLoss'),
        **options,
    )


CASES: list[Case] = [
    _case('DETR'),
    _case('Conditional DETR'),
    _case('DAB-DETR'),
    _case('Deformable DETR'),
    _case('Deformable DETR, two-stage'),
    _case('DINO'),
    _case('DDQ'),
]
