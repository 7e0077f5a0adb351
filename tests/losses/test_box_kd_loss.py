from __future__ import annotations

import math
import sys
from dataclasses import replace

import pytest
import torch
from mmdet.registry import MODELS
from torch import Tensor

from calkd_det.errors import ConfigError
from calkd_det.knowledge import BoxPredictions, HeadAnswer, HeadSamples
from calkd_det.losses import BoxKDLoss, box_kd_loss

CODER = ('DeltaXYWHBBoxCoder', (0.0,) * 4, (0.1, 0.1, 0.2, 0.2))


def predictions(count: int, seed: int) -> BoxPredictions:
    """Boxes with centerness; those of two seeds overlap or lie apart."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 30
    extent = torch.rand(count, 2, generator=generator) * 40 + 2
    return BoxPredictions(
        rows=torch.arange(count),
        boxes=torch.cat([corner, corner + extent], dim=1),
        centerness=torch.randn(count, generator=generator) * 3,
    )


def giou(a: list[float], b: list[float]) -> float:
    overlap = math.prod(max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    union = sum(areas) - overlap
    enclosed = math.prod(max(a[i + 2], b[i + 2]) - min(a[i], b[i]) for i in (0, 1))
    return overlap / union - (enclosed - union) / enclosed


def smooth_l1(a: list[float], b: list[float]) -> float:
    distances = [abs(x - y) for x, y in zip(a, b)]
    return sum(d**2 / 2 if d < 1 else d - 0.5 for d in distances) / 4


def bernoulli(z_s: float, z_t: float) -> float:
    q, p = (1 / (1 + math.exp(-z)) for z in (z_s, z_t))
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def reference(student: BoxPredictions, teacher: BoxPredictions, weights: Tensor) -> float:
    """The definition, in float64, a sample at a time."""
    total = 0.0
    s, t = (
        {name: value.double().tolist() for name, value in each.values().items()}
        for each in (student, teacher)
    )
    for m, weight in enumerate(weights.double().tolist()):
        if 'deltas' in s and 'deltas' in t and student.coder == teacher.coder:
            loss = smooth_l1(s['deltas'][m], t['deltas'][m])
        else:
            loss = 1 - giou(s['boxes'][m], t['boxes'][m])
        if 'centerness' in s and 'centerness' in t:
            loss += bernoulli(s['centerness'][m], t['centerness'][m])
        total += weight * loss
    return total / max(1.0, float(weights.double().sum()))


@pytest.mark.parametrize('count', [1, 3, 40])
def test_boxes_of_queries_by_l1_and_giou_divided_by_the_matches(count: int) -> None:
    width, height = 100, 60
    student, teacher = (predictions(count, seed) for seed in (0, 1))
    pair = []
    for each in (student, teacher):
        x1, y1, x2, y2 = each.boxes.unbind(dim=1)
        centres = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], dim=1)
        shares = centres / torch.tensor([width, height, width, height])
        pair.append(replace(each, centerness=None, normalised=shares))
    weights = torch.rand(count, generator=torch.Generator().manual_seed(2))
    weights[1::3] = 0
    total = sum(
        float(weight)
        * (
            5 * sum(abs(x - y) for x, y in zip(*(each.normalised[m].tolist() for each in pair)))
            + 2 * (1 - giou(*(each.boxes[m].tolist() for each in pair)))
        )
        for m, weight in enumerate(weights)
    )
    loss = box_kd_loss(*pair, weights)
    assert float(loss) == pytest.approx(total / int((weights > 0).sum()), rel=1e-5)
    assert box_kd_loss(pair[0], pair[0], weights) == 0
    # One head of queries alone: as dense heads.
    mixed = box_kd_loss(pair[0], replace(pair[1], normalised=None), weights)
    assert float(mixed) == pytest.approx(reference(*pair, weights), rel=1e-5)


@pytest.mark.parametrize('count', [1, 3, 40])
@pytest.mark.parametrize('kind', ['dense', 'centerness', 'one centerness', 'deltas', 'coders'])
def test_equals_its_definition(kind: str, count: int) -> None:
    student, teacher = predictions(count, seed=0), predictions(count, seed=1)
    if kind in ('dense', 'one centerness'):
        teacher = replace(teacher, centerness=None)
    if kind == 'dense':
        student = replace(student, centerness=None)
    if kind in ('deltas', 'coders'):
        student, teacher = (
            replace(each, centerness=None, deltas=torch.randn(count, 4), coder=CODER)
            for each in (student, teacher)
        )
    if kind == 'coders':
        teacher = replace(teacher, coder=(*CODER[:2], (1.0,) * 4))
    weights = torch.rand(count)
    weights[1::3] = 0
    expected = reference(student, teacher, weights)
    loss = box_kd_loss(student, teacher, weights)
    assert expected > 0
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_deltas_of_unknown_coders_are_not_compared() -> None:
    student, teacher = (
        replace(predictions(4, seed=seed), deltas=torch.full((4, 4), float(seed)))
        for seed in (0, 1)
    )
    assert box_kd_loss(student, teacher, torch.ones(4)).item() == pytest.approx(
        reference(replace(student, deltas=None), teacher, torch.ones(4)), rel=1e-5
    )


def test_centerness_has_the_gradient_of_binary_cross_entropy() -> None:
    student, teacher = predictions(5, seed=0), predictions(5, seed=1)
    student = replace(student, boxes=teacher.boxes)
    logits = student.centerness.requires_grad_()
    (ours,) = torch.autograd.grad(box_kd_loss(student, teacher, torch.ones(5)), logits)
    bce = torch.nn.functional.binary_cross_entropy_with_logits(logits, teacher.centerness.sigmoid())
    (theirs,) = torch.autograd.grad(bce, logits)
    torch.testing.assert_close(ours, theirs)


def test_no_loss_and_no_gradient_where_both_agree() -> None:
    student = predictions(40, seed=0)
    teacher = replace(student)
    student = replace(
        student,
        boxes=student.boxes.clone().requires_grad_(),
        centerness=student.centerness.clone().requires_grad_(),
    )
    loss = box_kd_loss(student, teacher, torch.ones(40))
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert student.boxes.grad.abs().max() < 1e-7
    assert student.centerness.grad.abs().max() < 1e-7


def test_boxes_without_an_area_agree_with_themselves_alone() -> None:
    flat = BoxPredictions(
        torch.arange(2), torch.tensor([[3.0, 4.0, 3.0, 9.0], [5.0, 5.0, 5.0, 5.0]])
    )
    moved = replace(flat, boxes=flat.boxes + 2)
    weights = torch.ones(2)
    assert box_kd_loss(flat, flat, weights) == 0
    assert box_kd_loss(flat, moved, weights).item() == pytest.approx(1)


def test_no_sample_gives_zero_with_a_graph() -> None:
    student, teacher = predictions(0, seed=0), predictions(0, seed=1)
    student.boxes.requires_grad_()
    loss = box_kd_loss(student, teacher, torch.ones(0))
    assert loss == 0
    loss.backward()
    assert student.boxes.grad.shape == (0, 4)


def samples(activation: str, dtype: torch.dtype = torch.float32) -> tuple[HeadSamples, HeadAnswer]:
    """Six samples of three classes, of which the third, the fifth and the last have a box."""
    columns = 4 if activation == 'softmax' else 3
    logits = torch.randn(2, 6, columns, generator=torch.Generator().manual_seed(0)).to(dtype)
    rows = torch.tensor([2, 4, 5])
    labels = torch.tensor([3, 3, 0, 3, 2, 1])
    own, other = (replace(predictions(3, seed=seed), rows=rows) for seed in (0, 1))
    weights = torch.tensor([1.0, 1.0, 0.5, 1.0, 1.0, 2.0])
    return (
        HeadSamples(logits[0], labels, weights, torch.zeros(6, 5), activation, boxes=own),
        HeadAnswer(logits[1], other),
    )


@pytest.mark.parametrize('activation', ['softmax', 'sigmoid'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_weights_are_the_heads_times_the_teachers_probability_of_the_class(
    activation: str, dtype: torch.dtype
) -> None:
    piece, answer = samples(activation, dtype)
    z = answer.logits.double()
    scores = z.softmax(dim=1) if activation == 'softmax' else z.sigmoid()
    weights = torch.stack([0.5 * scores[2, 0], scores[4, 2], 2 * scores[5, 1]])
    expected = 2.0 * reference(piece.boxes, answer.boxes, weights)
    loss = MODELS.build(dict(type='BoxKDLoss', loss_weight=2.0))
    with torch.autocast('cpu', torch.bfloat16):
        assert piece.compare(loss, answer).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('bad', [math.nan, math.inf])
@pytest.mark.parametrize('what', ['boxes', 'centerness', 'logits'])
def test_samples_with_a_non_finite_answer_count_with_weight_0(what: str, bad: float) -> None:
    piece, answer = samples('sigmoid')
    loss = BoxKDLoss()
    kept = piece.weights.clone()
    kept[4] = 0
    expected = replace(piece, weights=kept).compare(loss, answer)
    (answer.logits if what == 'logits' else answer.boxes.values()[what])[
        4 if what == 'logits' else 1
    ] = bad
    piece.boxes.boxes.requires_grad_()
    clean, answer = piece.without_non_finite(answer)
    found = clean.compare(loss, answer)
    assert torch.equal(clean.weights, kept)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    found.backward()
    assert piece.boxes.boxes.grad.isfinite().all()
    assert piece.boxes.boxes.grad[0].any()
    assert not piece.boxes.boxes.grad[1].any()


def test_a_dense_head_divides_by_the_mean_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = predictions(30, seed=0), predictions(30, seed=1), torch.rand(30)
    own_sum, other_sum = float(inputs[2].sum()), 4.0
    monkeypatch.setattr(
        sys.modules[box_kd_loss.__module__], 'reduce_mean', lambda total: (total + other_sum) / 2
    )
    expected = reference(*inputs) * own_sum / ((own_sum + other_sum) / 2)
    assert box_kd_loss(*inputs).item() == pytest.approx(expected, rel=1e-5)


def test_a_roi_head_waits_for_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_communication(total: Tensor) -> Tensor:
        raise AssertionError

    monkeypatch.setattr(sys.modules[box_kd_loss.__module__], 'reduce_mean', no_communication)
    student, teacher = (
        replace(predictions(5, seed=seed), deltas=torch.randn(5, 4), coder=CODER) for seed in (0, 1)
    )
    weights = torch.rand(5)
    expected = reference(student, teacher, weights)
    assert box_kd_loss(student, teacher, weights).item() == pytest.approx(expected, rel=1e-5)


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'distillation\.loss_weight'):
        BoxKDLoss(loss_weight=-1)
