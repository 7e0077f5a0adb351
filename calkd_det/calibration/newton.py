"""Minimisation of many small convex functions at once, within bounds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# From parameters (P, D): values (P,), gradients (P, D) and Hessians (P, D, D) of P functions.
Evaluate = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]

_MAX_ITERATIONS = 200
_MAX_HALVINGS = 40
_STEP_TOLERANCE = 1e-9
# Changes of a function below this share of its value are rounding.
_ROUNDING = 1e-14


def minimise_convex(
    evaluate: Evaluate, start: np.ndarray, lower: np.ndarray, upper: np.ndarray
) -> np.ndarray:
    """Minimise P convex functions of D parameters each by Newton's method with projection.

    A parameter near its bound whose gradient points out of the bounds goes to the bound, and the
    Newton step is that of the others. Steps are halved until the function decreases enough, and
    each is projected to the bounds (Bertsekas, `Projected Newton Methods
    <https://doi.org/10.1137/0320018>`_, 1982). A step costs one evaluation as a rule.

    Args:
        evaluate: The functions.
        start: Shape (P, D).
        lower: Lower bounds, shape (D,).
        upper: Upper bounds, shape (D,).

    Returns:
        float64, shape (P, D), within the bounds.
    """
    theta = np.clip(np.asarray(start, dtype=np.float64), lower, upper)
    value, gradient, hessian = evaluate(theta)
    for _ in range(_MAX_ITERATIONS):
        direction = _direction(theta, gradient, hessian, lower, upper)
        change = np.clip(theta + direction, lower, upper) - theta
        running = np.abs(change).max(axis=1) > _STEP_TOLERANCE * (1 + np.abs(theta).max(axis=1))
        share = np.where(running, 1.0, 0.0)
        for _ in range(_MAX_HALVINGS):
            trial = np.clip(theta + share[:, None] * direction, lower, upper)
            found = evaluate(trial)
            decrease = ((theta - trial) * gradient).sum(axis=1)
            limit = value - 1e-4 * np.maximum(decrease, 0) + _ROUNDING * np.abs(value)
            accepted = running & (found[0] <= limit)
            if (accepted | ~running).all():
                break
            share = np.where(accepted, share, share / 2)
        if not accepted.any():
            break
        theta, value, gradient, hessian = (
            np.where(accepted.reshape(-1, *[1] * (new.ndim - 1)), new, old)
            for new, old in zip((trial, *found), (theta, value, gradient, hessian))
        )
    return theta


def _direction(
    theta: np.ndarray,
    gradient: np.ndarray,
    hessian: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
) -> np.ndarray:
    """Return the Newton step of the parameters that are not held at a bound, (P, D)."""
    margin = 1e-6 * (upper - lower)
    at_lower = (theta <= lower + margin) & (gradient > 0)
    at_upper = (theta >= upper - margin) & (gradient < 0)
    held = at_lower | at_upper
    free = ~held
    matrix = np.where(free[:, :, None] & free[:, None, :], hessian, 0.0)
    scale = np.trace(matrix, axis1=1, axis2=2)[:, None]
    # Keeps the matrix invertible where the data say nothing of a parameter.
    diagonal = np.where(held, 1.0, 1e-12 * scale + 1e-300)
    matrix += np.eye(theta.shape[1]) * diagonal[:, None, :]
    step = np.linalg.solve(matrix, -np.where(held, 0.0, gradient)[:, :, None])[:, :, 0]
    return np.where(at_lower, lower - theta, np.where(at_upper, upper - theta, step))
