"""Assign columns of a cost matrix to its rows, so that the sum of costs is least."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

# Cost of a pair that is no match.
EXCLUDED = 1e9
# Cost of a pair in which a value is not finite. It is above that of any other pair.
NON_FINITE = 1e6

# Sinkhorn's iterations: their regularisation, in standard deviations of the costs, and how many.
_REGULARISATIONS = (1.0, 0.3, 0.1, 0.03, 0.01)
_ITERATIONS = 20
# Keeps a column that no row wants at a finite price.
_FLOOR = 1e-18
# Below this number of rows the Hungarian method takes less time than the prices.
_PRICED_FROM = 500


def assign(costs: Tensor) -> Tensor:
    """Assign columns to rows by the Hungarian method.

    Each matrix has a thread of its own. Costs on a GPU are given :func:`column_prices` first, for
    the method runs on the CPU while the GPU waits. The host waits once, for all matrices.

    Args:
        costs: Float, shape (B, Q, Q'); ``EXCLUDED`` for a pair that is no match.

    Returns:
        The column of each row, int64, shape (B, Q), on the CPU; -1 for a row without one.
    """
    if prices_pay(costs):  # in float64, where they change nothing but the time
        costs = costs.double() - column_prices(costs)[:, None]
    matrices = costs.cpu().numpy()
    matches = np.full(matrices.shape[:2], -1)
    with ThreadPoolExecutor() as threads:
        found = threads.map(linear_sum_assignment, matrices)
        for own, cost, (rows, columns) in zip(matches, matrices, found):
            kept = cost[rows, columns] < EXCLUDED / 2  # far above all others, with a price too
            own[rows[kept]] = columns[kept]
    return torch.from_numpy(matches)


def prices_pay(costs: Tensor) -> bool:
    """Return whether :func:`column_prices` saves more time than it takes."""
    _, rows, columns = costs.shape
    return costs.is_cuda and rows == columns >= _PRICED_FROM


@torch.no_grad()
def column_prices(costs: Tensor) -> Tensor:
    """Return a price for each column with which hardly two rows have the same cheapest one.

    In a square matrix every column is assigned, so taking prices off the columns changes all
    assignments by the same sum, and the best one stays the best. The Hungarian method takes long
    where many rows compete for a column. The prices are the dual variables of entropic optimal
    transport by Sinkhorn's iterations (Cuturi, `arXiv 1306.0895
    <https://arxiv.org/abs/1306.0895>`_), with a regularisation that falls.

    Args:
        costs: Float, shape (B, Q, Q).

    Returns:
        Prices, finite, shape (B, Q).
    """
    with torch.autocast(costs.device.type, enabled=False):
        costs = costs.float()
        ordinary = costs < NON_FINITE
        mean = (costs * ordinary).sum((1, 2), keepdim=True) / ordinary.sum((1, 2), keepdim=True)
        costs = torch.where(ordinary, costs, mean).nan_to_num()
        by_row = costs.mean(dim=2, keepdim=True)
        by_column = (costs - by_row).mean(dim=1, keepdim=True)
        excess = costs - by_row - by_column
        spread = excess.flatten(1).std(dim=1, correction=0)[:, None, None].clamp(min=_FLOOR)
        columns = torch.zeros_like(by_column)
        for regularisation in _REGULARISATIONS:
            scale = regularisation * spread
            kernel = ((columns - excess) / scale).softmax(dim=2)
            right = torch.ones_like(by_row)
            for _ in range(_ITERATIONS):
                left = 1 / (kernel @ right).clamp(min=_FLOOR)
                right = 1 / (kernel.transpose(1, 2) @ left).clamp(min=_FLOOR)
            columns = columns + scale * right.transpose(1, 2).log()
        return (by_column + columns).squeeze(1)
