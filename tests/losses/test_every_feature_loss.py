"""What every loss of feature maps promises, whichever it is."""

from __future__ import annotations

import copy
import doctest
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from feature_maps import BOXES, as_float, make_maps, make_valid
from mmdet.registry import MODELS
from torch import Tensor

import calkd_det.losses
from calkd_det.errors import ConfigError
from calkd_det.losses import FeatureLoss, LearntFeatureLoss

DOCS = Path(__file__).resolve().parents[2] / 'docs' / 'losses.md'
PUBLIC = [getattr(calkd_det.losses, name) for name in calkd_det.losses.__all__]
LOSSES = [
    cls
    for cls in PUBLIC
    if inspect.isclass(cls) and issubclass(cls, FeatureLoss) and not inspect.isabstract(cls)
]
WIDTHS = dict(student_channels=3, teacher_channels=5)
# Each loss, and each with learnt parts also for a student of another width.
CASES = [pytest.param(cls, 5, id=cls.__name__) for cls in LOSSES] + [
    pytest.param(cls, 3, id=f'{cls.__name__}-convolution')
    for cls in LOSSES
    if issubclass(cls, LearntFeatureLoss)
]
HALVES = [torch.float16, torch.bfloat16]

every_case = pytest.mark.parametrize(('cls', 'width'), CASES)
learnt_losses = pytest.mark.parametrize(
    'cls', [cls for cls in LOSSES if issubclass(cls, LearntFeatureLoss)], ids=lambda c: c.__name__
)


def build(cls: type[FeatureLoss], width: int, **changes: Any) -> FeatureLoss:
    torch.manual_seed(0)
    options = dict(num_levels=2, loss_weight=1.0)
    if issubclass(cls, LearntFeatureLoss):
        options.update(student_channels=width, teacher_channels=5)
    return cls(**{**options, **changes})


def call(loss: FeatureLoss, *inputs: Any) -> Tensor:
    """The loss of a copy, so that each call draws the same masks."""
    return copy.deepcopy(loss)(*inputs)


def test_all_are_found() -> None:
    assert {'PKDLoss', 'CWDLoss', 'MGDLoss', 'FGDLoss'} <= {cls.__name__ for cls in LOSSES}


@every_case
def test_is_registered_and_its_text_is_one_line(cls: type[FeatureLoss], width: int) -> None:
    loss = build(cls, width)
    assert MODELS.get(cls.__name__) is cls
    assert loss.kind == 'features'
    assert repr(loss).startswith(f'{cls.__name__}(')
    assert '\n' not in repr(loss)


@every_case
def test_loss_weight_scales_and_zero_builds_no_parts(cls: type[FeatureLoss], width: int) -> None:
    inputs = as_float(make_maps(width, seed=1)), as_float(make_maps(seed=2)), None, BOXES
    one = build(cls, width)(*inputs)
    assert one > 0
    assert torch.allclose(build(cls, width, loss_weight=0.25)(*inputs), one / 4)
    assert not list(build(cls, width, loss_weight=0).parameters())


@every_case
def test_no_gradient_flows_into_the_teacher(cls: type[FeatureLoss], width: int) -> None:
    student, teacher = as_float(make_maps(width, seed=1)), as_float(make_maps(seed=2))
    for maps in (*student, *teacher):
        maps.requires_grad_()
    loss = build(cls, width)
    loss(student, teacher, None, BOXES).backward()
    assert all(maps.grad is None for maps in teacher)
    assert all(maps.grad.any() for maps in student)
    assert all(p.grad is not None for p in loss.parameters())


@every_case
def test_places_that_do_not_count_change_nothing(cls: type[FeatureLoss], width: int) -> None:
    valid = make_valid()
    student, teacher = as_float(make_maps(width, seed=1)), as_float(make_maps(seed=2))
    for maps in student:
        maps.requires_grad_()
    loss = build(cls, width)
    value = call(loss, student, teacher, valid, BOXES)
    value.backward()
    for maps, mask in zip(student, valid):
        assert not (maps.grad * ~mask).any()
    others = as_float(make_maps(width, seed=3, scale=9)), as_float(make_maps(seed=4, scale=9))
    changed = [
        [x.detach().where(mask, y) for x, y, mask in zip(maps, other, valid)]
        for maps, other in zip((student, teacher), others)
    ]
    assert torch.allclose(call(loss, *changed, valid, BOXES), value, rtol=1e-5)


@every_case
def test_a_mask_of_all_places_is_none(cls: type[FeatureLoss], width: int) -> None:
    student, teacher = as_float(make_maps(width, seed=1)), as_float(make_maps(seed=2))
    loss = build(cls, width)
    all_places = [torch.ones_like(mask) for mask in make_valid()]
    value = call(loss, student, teacher, None, BOXES)
    assert torch.allclose(call(loss, student, teacher, all_places, BOXES), value, rtol=1e-5)


@every_case
@pytest.mark.parametrize('images', [[0], [0, 1]], ids=['one', 'all'])
def test_images_of_which_no_place_counts(
    cls: type[FeatureLoss], width: int, images: list[int]
) -> None:
    student, teacher = as_float(make_maps(width, seed=1)), as_float(make_maps(seed=2))
    for maps in student:
        maps.requires_grad_()
    valid = make_valid()
    for mask in valid:
        mask[images] = False
    value = build(cls, width)(student, teacher, valid, BOXES)
    value.backward()
    assert value.isfinite()
    for maps in student:
        assert maps.grad.isfinite().all()
        assert not maps.grad[images].any()
    if len(images) == 2 and cls.__name__ != 'FGDLoss':
        assert value == 0


@every_case
@pytest.mark.parametrize('boxes', [(), [torch.zeros(0, 4)] * 2], ids=['none', 'empty'])
def test_images_without_objects(cls: type[FeatureLoss], width: int, boxes: Any) -> None:
    student, teacher = as_float(make_maps(width, seed=1)), as_float(make_maps(seed=2))
    value = build(cls, width)(student, teacher, None, boxes)
    assert value.isfinite()
    assert value > 0


@every_case
@pytest.mark.parametrize('dtype', HALVES, ids=str)
def test_half_precision_is_computed_in_float32(
    cls: type[FeatureLoss], width: int, dtype: torch.dtype
) -> None:
    student, teacher = make_maps(width, seed=1, scale=1e4), make_maps(seed=2, scale=5e3)
    student, teacher = ([maps.to(dtype) for maps in side] for side in (student, teacher))
    for maps in student:
        maps.requires_grad_()
    loss = build(cls, width)
    value = call(loss, student, teacher, None, BOXES)
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert torch.equal(value, call(loss, as_float(student), as_float(teacher), None, BOXES))
    gradients = torch.autograd.grad(call(build(cls, width), student, teacher, None, BOXES), student)
    assert all(gradient.dtype == dtype for gradient in gradients)


@every_case
@pytest.mark.parametrize('dtype', HALVES, ids=str)
def test_is_float32_whatever_autocast_says(
    cls: type[FeatureLoss], width: int, dtype: torch.dtype
) -> None:
    student, teacher = as_float(make_maps(width, seed=1)), as_float(make_maps(seed=2))
    loss = build(cls, width)
    expected = call(loss, student, teacher, None, BOXES)
    with helpers.cpu_autocast(dtype):
        assert torch.equal(call(loss, student, teacher, None, BOXES), expected)


@every_case
@pytest.mark.parametrize('dtype', HALVES, ids=str)
def test_parts_of_half_precision_are_computed_in_float32(
    cls: type[FeatureLoss], width: int, dtype: torch.dtype
) -> None:
    student, teacher = as_float(make_maps(width, seed=1)), as_float(make_maps(seed=2))
    student[0].requires_grad_()
    loss = build(cls, width).to(dtype)
    value = call(loss, student, teacher, None, BOXES)
    assert torch.equal(value, call(copy.deepcopy(loss).float(), student, teacher, None, BOXES))
    loss(student, teacher, None, BOXES).backward()
    assert all(p.grad.dtype == dtype for p in loss.parameters())


@every_case
def test_levels_beyond_those_asked_are_left_out(cls: type[FeatureLoss], width: int) -> None:
    student, teacher = as_float(make_maps(width, seed=1)), as_float(make_maps(seed=2))
    value = build(cls, width, num_levels=1)(student, teacher, make_valid(), BOXES)
    alone = build(cls, width, num_levels=1)(student[:1], teacher[:1], make_valid()[:1], BOXES)
    assert torch.equal(value, alone)


@pytest.mark.parametrize(
    'name',
    sorted({cls.__module__ for cls in LOSSES} | {'calkd_det.losses.standardisation'}),
)
def test_examples_in_the_docstrings_hold(name: str) -> None:
    result = doctest.testmod(sys.modules[name])
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize('cls', LOSSES, ids=lambda cls: cls.__name__)
def test_the_page_tells_of_it_with_configs_that_build(cls: type[FeatureLoss]) -> None:
    page = DOCS.read_text(encoding='utf-8')
    section = page.split(f'\n## {cls.__name__}\n')[1].split('\n## ')[0]
    snippets = re.findall(
        r'```python\ndistillation=(dict\(.*?\))(?: *#.*)?\n```', section, re.DOTALL
    )
    assert snippets
    for snippet in snippets:
        assert type(MODELS.build(eval(snippet)['feat'])) is cls


@learnt_losses
@pytest.mark.parametrize('name', ['student_channels', 'teacher_channels'])
@pytest.mark.parametrize('bad', [0, 2.0, None, True])
def test_a_sentence_for_a_width_that_is_no_number(
    cls: type[FeatureLoss], name: str, bad: Any
) -> None:
    with pytest.raises(ConfigError, match=rf'distillation\.{name} must be an integer >= 1'):
        cls(**{name: bad})


@learnt_losses
@pytest.mark.parametrize(
    ('student', 'teacher', 'told'),
    [
        ([3, 3], [5, 5], None),
        ([3, 3, 7], [5, 5, 9], None),
        ([4, 4], [5, 5], 'write feat.student_channels=4'),
        ([3, 3], [6, 6], 'write feat.teacher_channels=6'),
        ([4, 4], [6, 6], 'write feat.student_channels=4, feat.teacher_channels=6'),
        ([3], [5], 'feat.num_levels is 2, .* 1 levels: write feat.num_levels=1'),
        ([3, 4], [5, 5], "the student's have 3, 4 channels"),
        ([3, 3], [5, 6], "the teacher's have 5, 6 channels"),
    ],
)
def test_other_widths_are_told_with_what_to_write(
    cls: type[FeatureLoss], student: list[int], teacher: list[int], told: str | None
) -> None:
    loss = build(cls, 3)
    if told is None:
        loss.check_widths(student, teacher, 'feat')
    else:
        with pytest.raises(ConfigError, match=told):
            loss.check_widths(student, teacher, 'feat')


@pytest.mark.parametrize('name', ['PKDLoss', 'CWDLoss'])
def test_losses_without_parts_take_any_equal_widths(name: str) -> None:
    loss = getattr(calkd_det.losses, name)()
    loss.check_widths([16, 32, 64], [16, 32, 64], 'feat')
    told = {
        'PKDLoss': 'feat: PKDLoss compares channel by channel, but level 0 .* such as CWDLoss',
        'CWDLoss': 'write feat.student_channels=96, feat.teacher_channels=128, feat.num_levels=3',
    }[name]
    with pytest.raises(ConfigError, match=told):
        loss.check_widths([96] * 3, [128] * 3, 'feat')
