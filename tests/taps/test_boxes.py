"""Boxes that the taps read: those of mmdet's own losses and predictions, for every head."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import dense_cases
import helpers
import pytest
import torch
import two_stage_cases
from cases import Case
from mmdet.models.dense_heads import (
    DDODHead,
    FCOSHead,
    FoveaHead,
    GFLHead,
    RetinaHead,
    RetinaSepBNHead,
    YOLOXHead,
)
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from two_stage_cases import box_heads

from calkd_det.errors import ConfigError
from calkd_det.knowledge import BoxPredictions, HeadAnswer, HeadSamples
from calkd_det.losses import BoxKDLoss, LDLoss
from calkd_det.taps import CLASS, CLASS_AND_BOX, find_taps
from calkd_det.taps.dense_boxes import predicted_boxes

CASES = [
    *two_stage_cases.CASES,
    *two_stage_cases.READ,
    *dense_cases.CASES,
    *dense_cases.READ,
]
WITHOUT_BOXES = {
    'SABL': 'chooses among buckets',
    'SABL cascade': 'chooses among buckets',
    'SABL RetinaNet': 'chooses among buckets',
    'Grid': 'heat maps of a grid branch',
}
READ = [case for case in CASES if case.name not in WITHOUT_BOXES]
# Neither the classes nor the boxes of a teacher come from these.
NOT_ASKED = 'rpn_head|mask|point_head|relay|kernel|conv_obj|atss_iou|loss'


def every(cases: Sequence[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize('case', cases, ids=lambda case: case.name)


def student_of(case: Case, in_training: bool = True) -> nn.Module:
    """Return a student in train mode, the test's own; see :func:`build`."""
    return copy.deepcopy(_student(case.name, in_training)).train()


@cache
def _student(name: str, in_training: bool) -> nn.Module:
    (case,) = (case for case in CASES if case.name == name)
    return build(case, case.student, seed=0, in_training=in_training)


@torch.no_grad()
def build(case: Case, cfg: dict, seed: int, in_training: bool = True) -> nn.Module:
    """Build a detector whose logits and boxes have a spread: mmdet's initial ones are alike.

    ``in_training`` gives boxes their spread in training mode, which differs by BatchNorm.
    """
    detector = helpers.build(cfg, seed=seed)
    helpers.randomise_batchnorm(detector, seed)
    case.sharpen(detector, seed)
    case.spread_boxes(detector, seed, in_training)
    return detector


def record(
    case: Case, detector: nn.Module, kinds: frozenset = CLASS_AND_BOX
) -> tuple[list[HeadSamples], dict[str, Any]]:
    """Record a step of a student, whose losses are returned as well."""
    taps = find_taps(detector, kinds, 'model')
    torch.manual_seed(5)
    with taps.record(detector, []) as samples:
        losses = helpers.loss(detector, case.batch())
    return samples, losses


@torch.no_grad()
def ask(case: Case, teacher: nn.Module, samples: Sequence[HeadSamples]) -> list[HeadAnswer]:
    """Let a detector, after ``keep``, answer for the samples of another."""
    tap = find_taps(teacher, CLASS_AND_BOX, 'model').head
    stages = case.teacher_options.get('stages', range(len(samples)))
    names = tap.classifiers(teacher)
    data = teacher.data_preprocessor(case.batch(), False)
    feats = tap.prepare(teacher, teacher.extract_feat(data['inputs']))
    return [
        tap.answer(teacher, feats, replace(each, name=names[stage]))
        for each, stage in zip(samples, stages)
    ]


@every(READ)
def test_recorded_boxes_are_those_of_mmdets_own_loss(case: Case) -> None:
    student = student_of(case)
    plain = copy.deepcopy(student)
    heads = box_heads(student) if hasattr(student, 'roi_head') else [student.bbox_head]
    given: list[list[Tensor]] = [[] for _ in heads]
    handles = [
        head.loss_bbox.register_forward_hook(
            lambda m, args, output, to=to: to.append(args[0].detach())
        )
        for head, to in zip(heads, given)
    ]
    samples, losses = record(case, student)
    for handle in handles:
        handle.remove()
    torch.manual_seed(5)
    plain_losses = helpers.loss(plain, case.batch())
    for name, value in plain_losses.items():
        for ours, theirs in zip(
            *(x if isinstance(x, list) else [x] for x in (losses[name], value))
        ):
            assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs)), name

    for each, head, predictions in zip(samples, heads, given, strict=True):
        rows = ((each.labels < head.num_classes) & (each.weights > 0)).nonzero().squeeze(1)
        assert torch.equal(each.boxes.rows, rows)
        assert len(rows) > 3
        assert each.boxes.boxes.requires_grad
        if hasattr(student, 'roi_head'):
            # PISA computes the loss once more for its weights; the last is the head's.
            assert torch.equal(each.boxes.deltas, predictions[-1])
            decoded = head.bbox_coder.decode(each.locations[rows, 1:], predictions[-1])
            assert torch.equal(each.boxes.boxes, decoded)
        elif not isinstance(head, DDODHead):  # whose boxes are assigned on their own
            expected = dense_boxes_of_loss(head, each, torch.cat(predictions))
            if isinstance(head, YOLOXHead):  # in the order of the images
                assert len(expected) == len(rows)
                distance = (each.boxes.boxes[:, None] - expected).abs().sum(dim=2).amin(dim=1)
                assert distance.max() < 1e-3
            else:
                torch.testing.assert_close(each.boxes.boxes, expected, rtol=1e-5, atol=1e-4)


def dense_boxes_of_loss(head: nn.Module, samples: HeadSamples, given: Tensor) -> Tensor:
    """Decode what ``loss_bbox`` of a dense head is given, into pixels."""
    rows = samples.boxes.rows
    sizes = [tuple(size) for size in samples.locations.tolist()]
    batch = len(samples) // (sum(h * w for h, w in sizes) * head.prior_generator.num_base_priors[0])
    grids = head.prior_generator.grid_priors(sizes, device='cpu')
    priors = torch.cat([grid.repeat(batch, 1) for grid in grids])[rows]
    strides = torch.cat(
        [
            torch.full((batch * len(grid), 1), float(stride))
            for grid, (stride, _) in zip(grids, head.prior_generator.strides)
        ]
    )[rows]
    if isinstance(head, (RetinaHead, RetinaSepBNHead)):  # deltas of all anchors
        return head.bbox_coder.decode(priors, given[rows])
    if isinstance(head, GFLHead):  # in strides
        return given * strides
    if isinstance(head, FoveaHead):
        lengths = torch.tensor(head.base_edge_list, dtype=torch.float)
        levels = (strides / head.strides[0]).log2().long().squeeze(1)
        distances = given.exp() * lengths[levels, None]
        return torch.cat([priors - distances[:, :2], priors + distances[:, 2:]], dim=1)
    if isinstance(head, FCOSHead) and head.norm_on_bbox:  # sides in strides, points in pixels
        points = priors.repeat(1, 2)
        return points + (given - points) * strides
    return given


@every(READ)
def test_a_teacher_answers_with_the_boxes_of_its_whole_head(case: Case) -> None:
    student = student_of(case)
    teacher = build(case, case.teacher, seed=1, in_training=False).eval()
    samples, _ = record(case, student)
    asked = copy.deepcopy(teacher)
    find_taps(asked, CLASS_AND_BOX, 'model').keep(asked)
    calls: Counter[str] = Counter()
    for name, module in asked.named_modules():
        module.register_forward_hook(lambda m, args, output, name=name: calls.update([name]))
    answers = ask(case, asked, samples)
    for index, (each, answer) in enumerate(zip(samples, answers)):
        expected = whole_head(case, teacher, each, index)
        assert torch.equal(answer.boxes.rows, each.boxes.rows)
        torch.testing.assert_close(answer.logits, expected.logits, rtol=1e-5, atol=1e-5)
        boxes = [head.boxes.boxes for head in (answer, expected)]
        if hasattr(teacher, 'bbox_head'):  # mmdet clips what dense heads predict
            boxes = [each.clamp(min=0) for each in boxes]
        torch.testing.assert_close(*boxes, rtol=1e-5, atol=1e-3)
        if expected.boxes.centerness is not None:
            torch.testing.assert_close(answer.boxes.centerness, expected.boxes.centerness)
    kept = [name for name, module in asked.named_modules() if module._parameters]
    assert not [name for name in kept if re.search(NOT_ASKED, name)]
    unused = [name for name in kept if calls[name] == 0]
    assert not unused or 'stages' in case.teacher_options, unused


@torch.no_grad()
def whole_head(case: Case, teacher: nn.Module, samples: HeadSamples, index: int) -> HeadAnswer:
    """What mmdet's own forward and decoding of a teacher give for the samples with boxes."""
    data = teacher.data_preprocessor(case.batch(), False)
    feats = teacher.extract_feat(data['inputs'])
    rows = samples.boxes.rows
    if hasattr(teacher, 'bbox_head'):
        head = teacher.bbox_head
        sizes = samples.locations.tolist()
        outputs = [
            [maps[..., :h, :w] for maps, (h, w) in zip(levels, sizes)] for levels in head(feats)[:3]
        ]
        logits = [x.movedim(1, -1).reshape(-1, head.num_classes) for x in outputs[0]]
        centerness = None
        if type(head).__name__ in ('FCOSHead', 'ATSSHead'):
            centerness = torch.cat([x.flatten() for x in outputs[2]])[rows]
        boxes = BoxPredictions(rows, predicted_boxes(head, outputs)[rows], centerness=centerness)
        return HeadAnswer(torch.cat(logits), boxes)
    roi_head = teacher.roi_head
    stage = case.teacher_options.get('stages', range(9))[index]
    arguments, shared = [feats, samples.locations], {}
    if isinstance(roi_head.bbox_head, nn.ModuleList):
        arguments.insert(0, stage)
        if getattr(roi_head, 'with_semantic', False):
            shared['semantic_feat'] = roi_head.semantic_head(feats)[1]
        if getattr(roi_head, 'with_glbctx', False):
            shared['glbctx_feat'] = roi_head.glbctx_head(feats)[1]
    results = roi_head._bbox_forward(*arguments, **shared)
    head = box_heads(teacher)[stage if arguments[0] is not feats else 0]
    decoded = head.bbox_coder.decode(samples.locations[:, 1:], results['bbox_pred'])
    decoded = decoded.view(len(samples), -1, 4)
    columns = 0 if decoded.shape[1] == 1 else samples.labels[rows]
    return HeadAnswer(results['cls_score'], BoxPredictions(rows, decoded[rows, columns]))


@every(READ)
def test_a_detector_taught_by_itself_has_no_loss_and_no_gradient(case: Case) -> None:
    student = student_of(case, in_training=False)
    for module in student.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    itself = copy.deepcopy(student).eval()
    find_taps(itself, CLASS_AND_BOX, 'model').keep(itself)
    own = replace(case, teacher_options={})
    samples, _ = record(case, student)
    losses_kd = [BoxKDLoss()]
    if samples[0].boxes.distribution is not None:
        losses_kd.append(LDLoss())
    parameters = [p for p in student.parameters() if p.requires_grad]
    for each, answer in zip(samples, ask(own, itself, samples)):
        moved = replace(answer.boxes, boxes=answer.boxes.boxes + 4)
        if moved.deltas is not None:
            moved = replace(moved, deltas=moved.deltas + 1)
        if moved.distribution is not None:
            moved = replace(moved, distribution=moved.distribution.roll(1, dims=2))
        for loss in losses_kd:
            value = each.compare(loss, answer)
            other = each.compare(loss, replace(answer, boxes=moved))
            assert other > 1e-4
            assert abs(float(value)) < 1e-5 * float(other)
            norms = []
            for kd in (value, other):
                grads = torch.autograd.grad(kd, parameters, allow_unused=True, retain_graph=True)
                norms.append(sum(float(g.square().sum()) for g in grads if g is not None) ** 0.5)
            assert norms[1] > 0
            assert norms[0] < 1e-3 * norms[1]


@every([case for case in CASES if case.name in WITHOUT_BOXES])
def test_heads_whose_boxes_cannot_be_read_are_refused_with_the_reason(case: Case) -> None:
    detector = helpers.build(case.student)
    assert find_taps(detector, CLASS, 'model').head.kinds(detector) == CLASS
    with pytest.raises(
        ConfigError, match=f'model: .*but not its boxes: .*{WITHOUT_BOXES[case.name]}'
    ):
        find_taps(detector, CLASS_AND_BOX, 'model')


@every(READ)
def test_classes_alone_are_recorded_without_boxes(case: Case) -> None:
    samples, _ = record(case, student_of(case), CLASS)
    assert all(each.boxes is None and each.kinds == CLASS for each in samples)


# mmdet's own loss of PISA and of the heads with masks fails without any RoI.
@every(
    [
        case
        for case in READ
        if case in (*dense_cases.CASES, *dense_cases.READ)
        or (case.head.take_samples_away and not case.batch_options and case.name != 'PISA')
    ]
)
def test_without_any_sample_the_loss_is_zero_and_has_a_graph(case: Case) -> None:
    student = student_of(case)
    if case.head.take_samples_away:
        case.head.take_samples_away(student)
    itself = copy.deepcopy(student).eval()
    find_taps(itself, CLASS_AND_BOX, 'model').keep(itself)
    none = replace(case, batch_options={**case.batch_options, 'num_boxes': 0}, teacher_options={})
    samples, _ = record(none, student)
    for each, answer in zip(samples, ask(none, itself, samples)):
        loss = each.compare(BoxKDLoss(), answer)
        assert loss == 0
        loss.backward(retain_graph=True)
