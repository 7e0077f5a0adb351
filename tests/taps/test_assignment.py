"""The Hungarian method with prices of columns, against scipy's without."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from calkd_det.taps import assignment
from calkd_det.taps.assignment import EXCLUDED, NON_FINITE, assign, column_prices


def random_costs(rows: int, columns: int, seed: int = 0, images: int = 2) -> Tensor:
    """Costs as of queries: each of a row, of a column, and of the pair."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(images, *shape, generator=generator)

    return 60 + 3 * draw(rows, 1) + 3 * draw(1, columns) + draw(rows, 4) @ draw(4, columns)


def least_cost(cost: Tensor) -> float:
    matrix = cost.double().numpy()
    return matrix[linear_sum_assignment(matrix)].sum()


@pytest.fixture
def always_priced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignment, 'prices_pay', lambda costs: costs.shape[1] == costs.shape[2])


@pytest.mark.usefixtures('always_priced')
@pytest.mark.parametrize(('rows', 'columns'), [(1, 1), (2, 2), (60, 60), (7, 9), (9, 7)])
def test_the_sum_of_costs_is_least(rows: int, columns: int) -> None:
    costs = random_costs(rows, columns)
    for cost, matches in zip(costs, assign(costs)):
        taken = matches[matches >= 0]
        assert len(taken) == len(set(taken.tolist())) == min(rows, columns)
        total = cost.double()[matches >= 0, taken].sum()
        assert float(total) == pytest.approx(least_cost(cost), abs=1e-9)


@pytest.mark.usefixtures('always_priced')
@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.0, 1e-6, 1.0, 1e4]),
    non_finite=st.floats(0, 1),
    excluded=st.sampled_from([0.0, 0.2, 1.0]),
)
def test_pairs_that_are_no_match_are_left_out_and_the_rest_costs_least(
    seed: int, scale: float, non_finite: float, excluded: float
) -> None:
    costs = scale * random_costs(8, 8, seed)
    generator = torch.Generator().manual_seed(seed)
    costs[torch.rand(costs.shape, generator=generator) < non_finite] = NON_FINITE
    costs[torch.rand(costs.shape[:2], generator=generator) < excluded] = EXCLUDED
    assert column_prices(costs).isfinite().all()
    for cost, matches in zip(costs, assign(costs)):
        rows = (matches >= 0).nonzero().squeeze(1)
        assert rows.tolist() == (cost[:, 0] < EXCLUDED).nonzero().squeeze(1).tolist()
        matched = cost.double()[rows, matches[rows]].sum()
        left_out = (len(cost) - len(rows)) * EXCLUDED
        assert float(matched) == pytest.approx(least_cost(cost) - left_out, rel=1e-9, abs=1e-5)


def test_with_prices_hardly_two_rows_want_the_same_column() -> None:
    costs = random_costs(200, 200)
    prices = column_prices(costs)
    for cost, price in zip(costs, prices):
        assert len(cost.argmin(dim=1).unique()) < 20
        assert len((cost - price).argmin(dim=1).unique()) > 150


def test_prices_are_float32_under_autocast() -> None:
    costs = random_costs(50, 50)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        prices = column_prices(costs)
    assert torch.equal(prices, column_prices(costs))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='torch finds no CUDA device')
@pytest.mark.parametrize('number', [300, 900])
def test_on_a_gpu_the_sum_is_that_of_the_cpu(number: int) -> None:
    costs = random_costs(number, number)
    for cost, matches in zip(costs, assign(costs.cuda())):
        total = cost.double()[range(number), matches].sum()
        assert float(total) == pytest.approx(least_cost(cost), abs=1e-9)
