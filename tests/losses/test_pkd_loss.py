"""PKD against its definition and against Pearson's correlation, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from feature_maps import as_float, make_maps, make_valid
from torch import Tensor

from calkd_det.losses import PKDLoss, pkd_loss


def channels_of(maps: Tensor, valid: Tensor | None) -> list[np.ndarray]:
    """The values of each channel over the valid places of all images."""
    places = torch.ones_like(maps[:, :1], dtype=torch.bool) if valid is None else valid
    return [maps[:, d][places[:, 0]].numpy() for d in range(maps.shape[1])]


def standardised(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / (values.std(ddof=1) + 1e-6)


@pytest.mark.parametrize('masked', [False, True])
def test_is_its_definition_and_the_identity_with_pearson(masked: bool) -> None:
    student, teacher = make_maps(seed=1, scale=3), make_maps(seed=2, scale=0.2)
    valid = make_valid() if masked else None
    by_definition = by_pearson = 0.0
    for level, (own, other) in enumerate(zip(student, teacher)):
        pairs = list(zip(*(channels_of(maps, valid and valid[level]) for maps in (own, other))))
        squares = [np.square(standardised(s) - standardised(t)).mean() for s, t in pairs]
        correlations = [np.corrcoef(s, t)[0, 1] for s, t in pairs]
        count = len(pairs[0][0])
        by_definition += np.mean(squares) / 2
        by_pearson += (count - 1) / count * (1 - np.mean(correlations))
    value = pkd_loss(as_float(student), as_float(teacher), valid).item()
    assert value == pytest.approx(by_definition, rel=1e-5)
    assert value == pytest.approx(by_pearson, rel=1e-4)


def test_neither_scale_nor_offset_of_a_channel_counts() -> None:
    maps = as_float(make_maps())
    scale = torch.tensor([1.0, 0.1, 3.0, 20.0, 0.5]).view(1, 5, 1, 1)
    assert pkd_loss(maps, [scale * x - 4 for x in maps]) < 1e-6
    assert pkd_loss(maps, [-x for x in maps]) == pytest.approx(2 * (95 / 96 + 23 / 24), rel=1e-4)


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('value', [0.0, 7.5])
def test_a_constant_channel_has_no_gradient(value: float, masked: bool) -> None:
    student, teacher = as_float(make_maps(seed=1)), as_float(make_maps(seed=2))
    for maps in student:
        maps[:, 2] = value
        maps.requires_grad_()
    loss = pkd_loss(student, teacher, make_valid() if masked else None)
    loss.backward()
    assert loss.isfinite()
    for maps in student:
        assert not maps.grad[:, 2].any()
        assert maps.grad[:, 0].any()


def test_levels_are_those_asked() -> None:
    student, teacher = as_float(make_maps(seed=1)), as_float(make_maps(seed=2))
    expected = 0.5 * pkd_loss(student[:1], teacher[:1])
    assert torch.equal(PKDLoss(0.5, num_levels=1)(student, teacher), expected)
    expected = 6 * pkd_loss(student, teacher)
    assert torch.equal(PKDLoss()(student, teacher), expected)
