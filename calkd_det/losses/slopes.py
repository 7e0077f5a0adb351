"""A value whose slopes were computed along with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from calkd_det.losses.chunks import chunks


def with_slopes(value: Tensor, variable: Tensor, slopes: Tensor, factors: Tensor) -> Tensor:
    """Return a value that has the graph of a variable, by slopes that are known.

    Autograd keeps the slopes, and makes one more tensor of their size in the backward pass.

    Args:
        value: A scalar without a graph.
        variable: Float, any shape.
        slopes: Of the shape of ``variable``, without a graph.
        factors: Float, broadcast against ``slopes``. The derivative of the value by the variable
            is ``factors * slopes``.

    Returns:
        The value. It can be differentiated once.

    Raises:
        RuntimeError: In the backward pass, where ``create_graph=True``.

    Example:
        >>> import torch
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> square = with_slopes(torch.tensor(5.0), x, torch.tensor([1.0, 2.0]), torch.tensor(2.0))
        >>> square.backward()
        >>> x.grad
        tensor([2., 4.])
    """
    return _WithSlopes.apply(value, variable, slopes, factors)


class _WithSlopes(Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, variable: Tensor, slopes: Tensor, factors: Tensor
    ) -> Tensor:
        ctx.save_for_backward(slopes, factors)
        ctx.dtype = variable.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        # torch's once_differentiable would give a second derivative of zero without an error.
        if torch.is_grad_enabled():
            raise RuntimeError(
                'This loss of distillation can be differentiated once only: its gradient has no '
                'graph, so that create_graph=True does not work with it'
            )
        slopes, factors = ctx.saved_tensors
        gradient = torch.empty_like(slopes, dtype=ctx.dtype)
        factors = grad_output * factors
        for rows in chunks(slopes, dim=0):
            torch.mul(slopes[rows], factors.expand_as(slopes)[rows], out=gradient[rows])
        return None, gradient, None, None
