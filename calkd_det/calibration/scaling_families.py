"""Families of calibrators whose negative log-likelihood is convex in a few parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from calkd_det.calibration.temperature import DEFAULT_BOUNDS
from calkd_det.knowledge import Activation

# An inverse temperature within the bounds of the temperature.
_SLOPES = (1 / DEFAULT_BOUNDS[1], 1 / DEFAULT_BOUNDS[0])
_LARGEST_SHIFT = 50.0

# Value, gradient and Hessian of a negative log-likelihood.
Derivatives = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Parameter:
    """A parameter of a family.

    Attributes:
        name: Its name; ``inverse_temperature`` for 1/T.
        identity: Its value where the calibrator changes nothing.
        bounds: The smallest and the largest value of a fit.
        prior_std: Standard deviation of a class's parameter around that of all classes.
    """

    name: str
    identity: float
    bounds: tuple[float, float]
    prior_std: float


_INVERSE_TEMPERATURE = Parameter('inverse_temperature', 1.0, _SLOPES, 0.3)


class Family:
    """Calibrated logits that are linear in their parameters.

    Attributes:
        activation: The activation of the heads that it is for.
        parameters: Its D parameters.
    """

    activation: Activation
    parameters: tuple[Parameter, ...]

    def derivatives(
        self, theta: Tensor, logits: Tensor, targets: Tensor, weights: Tensor
    ) -> Derivatives:
        """Compute the weighted NLL of each sample, its gradient and its Hessian.

        Args:
            theta: float64, shape (1, D).
            logits: float64, shape (N, C).
            targets: Target probabilities, float64, shape (N, C).
            weights: float64, shape (N,); under sigmoid also (N, C).

        Returns:
            float64, shapes (N,), (N, D) and (N, D, D).
        """
        raise NotImplementedError


class SigmoidFamily(Family):
    """Family for sigmoid heads: ``logit_c = sum_d theta_cd f_d(z_c)``."""

    activation = 'sigmoid'

    def __init__(self, name: Literal['temperature', 'platt', 'beta']) -> None:
        self.name = name
        shift = Parameter('c' if name == 'beta' else 'b', 0.0, (-_LARGEST_SHIFT, _LARGEST_SHIFT), 1)
        slope_bounds = (0.0, _SLOPES[1])
        self.parameters = {
            'temperature': (_INVERSE_TEMPERATURE,),
            'platt': (Parameter('a', 1.0, slope_bounds, 0.3), shift),
            'beta': (
                Parameter('a', 1.0, slope_bounds, 0.3),
                Parameter('b', 1.0, slope_bounds, 0.3),
                shift,
            ),
        }[name]

    def derivatives(
        self, theta: Tensor, logits: Tensor, targets: Tensor, weights: Tensor
    ) -> Derivatives:
        return self._sum(theta, logits, targets, weights, dim=1)

    def class_derivatives(
        self, theta: Tensor, logits: Tensor, targets: Tensor, weights: Tensor
    ) -> Derivatives:
        """Compute what :meth:`derivatives` does of each class, summed over samples.

        Args:
            theta: Shape (C, D), or (1, D) for all classes.
            logits: As there.
            targets: As there.
            weights: As there.

        Returns:
            float64, shapes (C,), (C, D) and (C, D, D).
        """
        return self._sum(theta, logits, targets, weights, dim=0)

    def _design(self, logits: Tensor) -> list[Tensor | None]:
        """Return the features f_d, each of shape (N, C); None for a constant one."""
        if self.name == 'temperature':
            return [logits]
        if self.name == 'platt':
            return [logits, None]
        return [F.logsigmoid(logits), -F.logsigmoid(-logits), None]

    def _sum(
        self, theta: Tensor, logits: Tensor, targets: Tensor, weights: Tensor, dim: int
    ) -> Derivatives:
        features = self._design(logits)
        calibrated = torch.zeros_like(logits)
        for factor, feature in zip(theta.unbind(dim=1), features):
            calibrated += factor if feature is None else factor * feature
        scores = calibrated.sigmoid()
        weights = weights.unsqueeze(1) if weights.ndim == 1 else weights
        nll = (weights * (F.softplus(calibrated) - targets * calibrated)).sum(dim)
        residual = weights * (scores - targets)
        curvature = weights * scores * (1 - scores)
        gradient = torch.stack([_times(residual, f).sum(dim) for f in features], dim=-1)
        hessian = gradient.new_zeros(*gradient.shape, len(features))
        for i, first in enumerate(features):
            weighted = _times(curvature, first)
            for j, second in enumerate(features[: i + 1]):
                hessian[..., i, j] = hessian[..., j, i] = _times(weighted, second).sum(dim)
        return nll, gradient, hessian


class SoftmaxFamily(Family):
    """Family for softmax heads: z/T, with a bias of the background's logit on request.

    Args:
        background_bias: Whether the last logit has a bias.
    """

    activation = 'softmax'

    def __init__(self, background_bias: bool) -> None:
        bias = Parameter('bias', 0.0, (-_LARGEST_SHIFT, _LARGEST_SHIFT), 1)
        self.parameters = (_INVERSE_TEMPERATURE, bias)[: 1 + background_bias]

    def derivatives(
        self, theta: Tensor, logits: Tensor, targets: Tensor, weights: Tensor
    ) -> Derivatives:
        logits = logits - logits.amax(dim=1, keepdim=True)
        calibrated = logits * theta[0, 0]
        has_bias = len(self.parameters) > 1
        if has_bias:
            calibrated[:, -1] += theta[0, 1]
        log_scores = calibrated.log_softmax(dim=1)
        scores = log_scores.exp()
        nll = -torch.linalg.vecdot(log_scores, targets)
        mean = torch.linalg.vecdot(scores, logits)
        variance = torch.linalg.vecdot(scores, (logits - mean.unsqueeze(1)).square())
        by_slope = mean - torch.linalg.vecdot(targets, logits)
        if not has_bias:
            gradient, hessian = by_slope[:, None], variance[:, None, None]
        else:
            background = scores[:, -1]
            gradient = torch.stack([by_slope, background - targets[:, -1]], dim=1)
            mixed = background * (logits[:, -1] - mean)
            rows = [variance, mixed, mixed, background * (1 - background)]
            hessian = torch.stack(rows, dim=1).view(-1, 2, 2)
        return weights * nll, weights[:, None] * gradient, weights[:, None, None] * hessian


def _times(values: Tensor, feature: Tensor | None) -> Tensor:
    return values if feature is None else values * feature


TEMPERATURE: dict[Activation, Family] = {
    'softmax': SoftmaxFamily(background_bias=False),
    'sigmoid': SigmoidFamily('temperature'),
}
PLATT = SigmoidFamily('platt')
BETA = SigmoidFamily('beta')
BACKGROUND_BIAS = SoftmaxFamily(background_bias=True)
