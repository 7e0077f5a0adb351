"""FGD against its definition in float64: masks of boxes, attentions, focal terms and contexts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from feature_maps import BOXES, as_float, make_maps, make_valid
from torch import Tensor

from calkd_det.losses import FGDLoss, fgd_loss
from calkd_det.losses.fgd_loss import box_masks

WEIGHTS = dict(foreground_weight=0.3, background_weight=0.7, attention_weight=0.2)


def softmax(values: np.ndarray) -> np.ndarray:
    exponentials = np.exp(values - values.max())
    return exponentials / exponentials.sum()


def masks_by_definition(boxes: Tensor, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    height, width = places.shape
    foreground = np.zeros((height, width))
    for x1, y1, x2, y2 in boxes.tolist():
        left, right = math.floor(x1 * width), math.ceil(x2 * width)
        top, bottom = math.floor(y1 * height), math.ceil(y2 * height)
        area = (right + 1 - left) * (bottom + 1 - top)
        for y in range(top, min(bottom, height - 1) + 1):
            for x in range(left, min(right, width - 1) + 1):
                foreground[y, x] = max(foreground[y, x], 1 / area)
    background = (foreground == 0) & places
    return foreground * places, background / max(background.sum(), 1)


def attention_by_definition(
    maps: np.ndarray, places: np.ndarray, tau: float
) -> tuple[np.ndarray, np.ndarray]:
    spatial = np.zeros(places.shape)
    spatial[places] = places.sum() * softmax(np.abs(maps).mean(axis=0)[places] / tau)
    return spatial, len(maps) * softmax(np.abs(maps)[:, places].mean(axis=1) / tau)


def by_definition(
    student: list[Tensor], teacher: list[Tensor], valid: list[Tensor] | None, tau: float
) -> float:
    total = 0.0
    for level, (own, other) in enumerate(zip(student, teacher)):
        for n in range(len(other)):
            s, t = own[n].numpy(), other[n].numpy()
            places = np.ones(s.shape[1:], bool) if valid is None else valid[level][n, 0].numpy()
            foreground, background = masks_by_definition(BOXES[n], places)
            a_s, c_s = attention_by_definition(s, places, tau)
            a_t, c_t = attention_by_definition(t, places, tau)
            term = 0.2 * (np.abs(a_s - a_t).sum() + np.abs(c_s - c_t).sum())
            for d in range(len(t)):
                squares = a_t * c_t[d] * np.square(s[d] - t[d])
                term += 0.3 * (foreground * squares).sum() + 0.7 * (background * squares).sum()
            total += term / len(other)
    return total


@pytest.mark.parametrize('tau', [0.5, 0.8])
@pytest.mark.parametrize('masked', [False, True])
def test_focal_terms_are_their_definition(masked: bool, tau: float) -> None:
    student, teacher = make_maps(seed=1, scale=2), make_maps(seed=2)
    valid = make_valid() if masked else None
    value = fgd_loss(as_float(student), as_float(teacher), BOXES, valid, tau=tau, **WEIGHTS)
    assert value.item() == pytest.approx(by_definition(student, teacher, valid, tau), rel=1e-5)


@pytest.mark.parametrize(
    ('boxes', 'places'),
    [
        ([[0.0, 0.0, 1.0, 1.0]], 48),
        ([[0.0, 0.0, 0.05, 0.05]], 4),
        ([[0.9, 0.9, 1.0, 1.0]], 1),
        ([[0.2, 0.2, 0.3, 0.3], [0.6, 0.1, 0.7, 0.3]], 15),
        ([], 0),
    ],
)
def test_masks_of_boxes(boxes: list[list[float]], places: int) -> None:
    boxes = torch.tensor(boxes).view(-1, 4)
    foreground, background = box_masks([boxes], torch.zeros(1, 5, 6, 8))
    expected = masks_by_definition(boxes, np.ones((6, 8), bool))
    np.testing.assert_allclose(foreground[0, 0].numpy(), expected[0], rtol=1e-5)
    np.testing.assert_allclose(background[0, 0].numpy(), expected[1], rtol=1e-5)
    assert (foreground > 0).sum() == places
    assert background.sum().item() == pytest.approx(float(places < 48), abs=1e-6)


def test_an_object_of_any_size_has_the_same_weight() -> None:
    maps = torch.zeros(1, 5, 60, 80)
    for box in ([0.1, 0.1, 0.2, 0.2], [0.1, 0.1, 0.8, 0.9]):
        foreground, _ = box_masks([torch.tensor([box])], maps)
        assert foreground.sum().item() == pytest.approx(1, rel=1e-5)


def context_by_definition(
    block: torch.nn.Module, maps: np.ndarray, places: np.ndarray
) -> np.ndarray:
    state = {name: value.double().numpy() for name, value in block.state_dict().items()}
    logits = np.tensordot(state['place_logits.weight'][0, :, 0, 0], maps, 1)
    mean = (maps[:, places] * softmax(logits[places] + state['place_logits.bias'])).sum(axis=1)
    hidden = state['transform.0.weight'] @ mean + state['transform.0.bias']
    hidden = (hidden - hidden.mean()) / np.sqrt(hidden.var() + 1e-5)
    hidden = hidden * state['transform.1.weight'] + state['transform.1.bias']
    return state['transform.3.weight'] @ np.maximum(hidden, 0) + state['transform.3.bias']


@pytest.mark.parametrize('student_channels', [5, 3])
@pytest.mark.parametrize('masked', [False, True])
def test_the_module_adds_the_distance_of_contexts(masked: bool, student_channels: int) -> None:
    student, teacher = make_maps(student_channels, seed=1), make_maps(seed=2)
    valid = make_valid() if masked else None
    torch.manual_seed(0)
    loss = FGDLoss(
        **WEIGHTS,
        context_weight=0.6,
        loss_weight=0.5,
        num_levels=2,
        student_channels=student_channels,
        teacher_channels=5,
    )
    for parameter in loss.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    aligned = student
    if student_channels != 5:
        aligned = [level.align.double()(x).detach() for level, x in zip(loss.levels, student)]
        loss.float()
    expected = by_definition(aligned, teacher, valid, 0.5)
    for number, level in enumerate(loss.levels):
        for n in range(2):
            s, t = aligned[number][n].numpy(), teacher[number][n].numpy()
            places = np.ones(s.shape[1:], bool) if valid is None else valid[number][n, 0].numpy()
            own = s + context_by_definition(level.student_context, s, places)[:, None, None]
            other = t + context_by_definition(level.teacher_context, t, places)[:, None, None]
            expected += 0.6 * np.square(own - other)[:, places].sum() / 2
    value = loss(as_float(student), as_float(teacher), valid, BOXES)
    assert value.item() == pytest.approx(0.5 * expected, rel=1e-4)
    value.backward()
    # What DDP needs: each parameter is part of each step.
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())
    assert all(level.teacher_context.transform[3].bias.grad.any() for level in loss.levels)


def test_blocks_of_context_only_where_they_count() -> None:
    assert not list(FGDLoss(context_weight=0).parameters())
    assert not list(FGDLoss(loss_weight=0).parameters())
    loss = FGDLoss(context_weight=0, student_channels=3, teacher_channels=5, num_levels=1)
    assert [name for name, _ in loss.named_parameters()] == [
        'levels.0.align.weight',
        'levels.0.align.bias',
    ]


def test_untrained_it_is_zero_with_zero_gradient_where_student_is_teacher() -> None:
    maps = as_float(make_maps())
    for each in maps:
        each.requires_grad_()
    loss = FGDLoss(num_levels=2, student_channels=5, teacher_channels=5, loss_weight=1e4)
    value = loss(maps, [x.detach() for x in maps], None, BOXES)
    value.backward()
    assert value == 0
    assert all(not x.grad.any() for x in maps)
