"""MGD against its definition in float64, and its masks."""

from __future__ import annotations

import copy
import sys

import numpy as np
import pytest
import torch
from feature_maps import as_float, make_maps, make_valid
from torch import Tensor, nn

from calkd_det.errors import ConfigError
from calkd_det.losses import MGDLoss, mgd_loss

# Its name in the package is that of the function.
MODULE = sys.modules[mgd_loss.__module__]


def build(student_channels: int = 5, **changes: object) -> MGDLoss:
    torch.manual_seed(0)
    options = dict(loss_weight=1.0, num_levels=2, teacher_channels=5, **changes)
    return MGDLoss(student_channels=student_channels, **options)


def convolve(maps: np.ndarray, conv: nn.Conv2d) -> np.ndarray:
    """A convolution of one image, place by place, with zeros around it."""
    weight, bias = (p.detach().double().numpy() for p in (conv.weight, conv.bias))
    size = weight.shape[-1]
    margin = size // 2
    padded = np.pad(maps, ((0, 0), (margin, margin), (margin, margin)))
    result = np.zeros((len(weight), *maps.shape[1:]))
    for y in range(maps.shape[1]):
        for x in range(maps.shape[2]):
            window = padded[:, y : y + size, x : x + size]
            result[:, y, x] = (weight * window).sum(axis=(1, 2, 3)) + bias
    return result


def by_definition(
    loss: MGDLoss,
    student: list[Tensor],
    teacher: list[Tensor],
    kept: list[Tensor],
    valid: list[Tensor] | None,
) -> float:
    total = 0.0
    for level, (own, other) in enumerate(zip(student, teacher)):
        part = loss.levels[level]
        for n in range(len(other)):
            places = np.ones(other.shape[2:]) if valid is None else valid[level][n, 0].numpy()
            maps = own[n].numpy()
            if isinstance(part.align, nn.Conv2d):
                maps = convolve(maps, part.align)
            maps = convolve(maps * kept[level][n].numpy() * places, part.generator[0])
            maps = convolve(np.maximum(maps, 0), part.generator[2])
            total += (np.square(maps - other[n].numpy()) * places).sum() / len(other)
    return total


@pytest.mark.parametrize('student_channels', [5, 3])
@pytest.mark.parametrize('masked', [False, True])
def test_is_its_definition(masked: bool, student_channels: int) -> None:
    student, teacher = make_maps(student_channels, seed=1), make_maps(seed=2)
    valid = make_valid() if masked else None
    loss = build(student_channels)
    kept = copy.deepcopy(loss).draw_masks(student)
    expected = by_definition(loss, student, teacher, kept, valid)
    assert loss(as_float(student), as_float(teacher), valid).item() == pytest.approx(
        expected, rel=1e-5
    )


def test_the_distance_is_a_sum_over_places_and_channels_and_a_mean_over_images() -> None:
    teacher = as_float(make_maps())
    assert mgd_loss([x + 2 for x in teacher], teacher).item() == pytest.approx(
        4 * 5 * (6 * 8 + 3 * 4), rel=1e-5
    )


@pytest.mark.parametrize('ratio', [0.0, 0.45, 0.65])
def test_masks_drop_places_at_the_rate_and_all_channels_of_a_place_alike(ratio: float) -> None:
    (mask,) = build(mask_ratio=ratio).draw_masks([torch.zeros(4, 3, 100, 100)])
    assert mask.shape == (4, 1, 100, 100)
    assert mask.float().mean().item() == pytest.approx(1 - ratio, abs=0.01)


def test_masks_differ_by_step_and_rank_and_leave_the_generator_of_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    maps = [torch.zeros(1, 5, 20, 20)]
    torch.manual_seed(3)
    expected = torch.rand(2)
    drawn = []
    for rank in range(2):
        monkeypatch.setattr(MODULE, 'get_dist_info', lambda rank=rank: (rank, 2))
        loss = build()
        torch.manual_seed(3)
        drawn += [loss.draw_masks(maps)[0] for _ in range(3)]
        assert torch.equal(torch.rand(2), expected)
    for index, mask in enumerate(drawn):
        assert not any(torch.equal(mask, other) for other in drawn[:index])


def test_masks_go_on_where_the_state_was_saved() -> None:
    maps = [torch.zeros(1, 5, 20, 20)]
    loss = build()
    loss.draw_masks(maps)
    state = copy.deepcopy(loss.state_dict())
    torch.manual_seed(17)
    resumed = MGDLoss(num_levels=2, student_channels=5, teacher_channels=5)
    resumed.load_state_dict(state)
    assert torch.equal(resumed.draw_masks(maps)[0], loss.draw_masks(maps)[0])


def test_the_generator_learns_to_restore_the_teacher() -> None:
    student, teacher = as_float(make_maps(seed=1)), as_float(make_maps(seed=1))
    loss = build(mask_ratio=0.2)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.02)
    values = []
    for _ in range(150):
        value = loss(student, teacher)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert np.mean(values[-5:]) < 0.6 * values[0]


def test_a_ratio_of_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'distillation\.mask_ratio must be below 1'):
        MGDLoss(mask_ratio=1.0)
