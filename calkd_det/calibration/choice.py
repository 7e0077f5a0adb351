"""Choice between calibrators by their errors on images that they were not fitted to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from calkd_det.calibration.scores import class_scores, row_chunks
from calkd_det.calibration.targets import is_object, target_of, target_probabilities
from calkd_det.calibration.validation import check_groups
from calkd_det.knowledge import Activation

# From logits (N, C) to calibrated logits (N, C).
Calibration = Callable[[Tensor], Tensor]
# From logits, labels and weights of some images to calibrations fitted to them.
FitAll = Callable[[Tensor, Tensor, Tensor], Sequence[Calibration]]

SCORE_THRESHOLDS = (0.05, 0.5)


@dataclass(frozen=True)
class HeldOutErrors:
    """Errors of one calibrator on images that it was not fitted to.

    Attributes:
        nll: Weighted sum of the negative log-likelihood of each image, in nats, float64, (G,).
        brier: Weighted sum of the Brier score of each image, float64, (G,).
        weight: Total weight of each image, float64, (G,).
        score_gap: By a threshold, the mean score minus the share right of all decisions for a
            class whose calibrated score is at least the threshold; NaN where there are none.
        foreground_gap: Mean top-label confidence minus accuracy of the samples labelled as
            objects; NaN where there are none.
        num_folds: Number of folds that the images were split into.
    """

    nll: Tensor
    brier: Tensor
    weight: Tensor
    score_gap: dict[float, float]
    foreground_gap: float
    num_folds: int

    @property
    def mean_nll(self) -> float:
        """Mean negative log-likelihood of a sample, in nats."""
        return float(self.nll.sum() / self.weight.sum())

    @property
    def mean_brier(self) -> float:
        """Mean Brier score of a sample."""
        return float(self.brier.sum() / self.weight.sum())


def cross_validate(
    fit_all: FitAll,
    logits: Tensor,
    labels: Tensor,
    weights: Tensor,
    groups: Tensor,
    activation: Activation,
    *,
    num_folds: int = 5,
    seed: int = 0,
) -> list[HeldOutErrors]:
    """Measure calibrators on images that they were not fitted to.

    Args:
        fit_all: Fits all of them to the samples of some images.
        logits: Float, shape (N, C).
        labels: int64, shape (N,), in [0, C), or [0, C] under sigmoid; or target probabilities,
            shape (N, C).
        weights: Shape (N,), >= 0.
        groups: Image of each sample, int, shape (N,). Folds are made of whole images.
        activation: That of the head.
        num_folds: Folds, from 2 to the number of images.
        seed: Seed of the split into folds.

    Returns:
        Errors of each calibrator, in the order of ``fit_all``.

    Raises:
        ValueError: There are fewer images than folds, or fewer than two folds.
    """
    ids, position = check_groups(groups, len(labels)).unique(return_inverse=True)
    measured: list[_Errors] = []
    for fold in image_folds(position, len(ids), num_folds, seed):
        calibrations = fit_all(logits[~fold], labels[~fold], weights[~fold])
        measured = measured or [_Errors(len(ids), activation) for _ in calibrations]
        for errors, calibration in zip(measured, calibrations):
            errors.add(calibration, logits[fold], labels[fold], weights[fold], position[fold])
    return [errors.result(num_folds) for errors in measured]


def image_folds(position: Tensor, num_images: int, num_folds: int, seed: int) -> list[Tensor]:
    """Return which samples are in each fold, bool, shape (N,), from their image's index (N,)."""
    if not 2 <= num_folds <= num_images:
        raise ValueError(f'num_folds must be from 2 to the {num_images} images, got {num_folds}.')
    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(seed))
    fold_of_sample = (order % num_folds).to(position.device)[position]
    return [fold_of_sample == fold for fold in range(num_folds)]


def nll_excess(errors: HeldOutErrors, best: HeldOutErrors) -> tuple[float, float]:
    """Return how far the mean NLL is above that of the best, and the difference's standard error.

    The standard error is that of the mean of paired differences over images, in nats. Fits of two
    folds share most of their images, so that their errors go together. The standard error is
    widened by the factor of Nadeau and Bengio (`Inference for the Generalization Error
    <https://doi.org/10.1023/A:1024068626366>`_, 2003), 1.5 for five folds.
    """
    difference = errors.nll - best.nll
    total = best.weight.sum()
    mean = difference.sum() / total
    count = len(difference)
    residual = difference - mean * best.weight
    variance = residual.square().sum() * count / max(1, count - 1) / total.square()
    shared = 1 + best.num_folds / (best.num_folds - 1)
    return float(mean), math.sqrt(shared * float(variance))


def simplest_within_one_standard_error(
    candidates: Sequence[HeldOutErrors], num_parameters: Sequence[int]
) -> int:
    """Return the index of the calibrator with the fewest parameters that is about the best.

    It is about the best if its held-out NLL exceeds the least of all by no more than one standard
    error of the difference (the rule of Breiman et al., `Classification and Regression Trees`,
    1984, with differences paired by image). So a calibrator is chosen over a simpler one only on
    evidence.

    Args:
        candidates: Errors of each calibrator, on the same images.
        num_parameters: Number of fitted numbers of each. Of equal ones the better is taken.
    """
    best = min(candidates, key=lambda errors: errors.mean_nll)
    within = []
    for index, errors in enumerate(candidates):
        excess, standard_error = nll_excess(errors, best)
        if excess <= standard_error:
            within.append((num_parameters[index], errors.mean_nll, index))
    return min(within)[2]


class _Errors:
    """Sums of the errors of one calibrator over the folds."""

    def __init__(self, num_images: int, activation: Activation) -> None:
        self.activation = activation
        self.nll, self.brier, self.weight = torch.zeros(3, num_images, dtype=torch.float64)
        # Weight, score and right decisions, and the same of the foreground.
        self.above = {
            threshold: torch.zeros(3, dtype=torch.float64) for threshold in SCORE_THRESHOLDS
        }
        self.foreground = torch.zeros(3, dtype=torch.float64)

    @torch.no_grad()
    def add(
        self,
        calibration: Calibration,
        logits: Tensor,
        labels: Tensor,
        weights: Tensor,
        position: Tensor,
    ) -> None:
        for rows in row_chunks(len(labels)):
            z = calibration(logits[rows]).double()
            targets = target_probabilities(labels[rows], z.shape[1])
            scores = class_scores(z, self.activation)
            if self.activation == 'softmax':
                nll = -(z.log_softmax(dim=1) * targets).sum(dim=1)
            else:
                nll = (F.softplus(z) - z * targets).sum(dim=1)
            brier = (scores - targets).square().sum(dim=1)
            w = weights[rows].double()
            for sums, values in ((self.nll, nll), (self.brier, brier), (self.weight, 1)):
                sums.index_add_(0, position[rows].cpu(), (w * values).cpu())
            self._add_gaps(scores, targets, labels[rows], w)

    def _add_gaps(self, scores: Tensor, targets: Tensor, labels: Tensor, w: Tensor) -> None:
        num_classes = scores.shape[1] - (self.activation == 'softmax')
        classes, right = scores[:, :num_classes], targets[:, :num_classes]
        for threshold, sums in self.above.items():
            chosen = (classes >= threshold) * w.unsqueeze(1)
            sums += torch.stack([(chosen * part).sum() for part in (1, classes, right)]).cpu()
        objects = is_object(labels, num_classes)
        confidence, top = scores[objects].max(dim=1)
        hits = target_of(labels[objects], top)
        sums = torch.stack([(w[objects] * part).sum() for part in (1, confidence, hits)])
        self.foreground += sums.cpu()

    def result(self, num_folds: int) -> HeldOutErrors:
        gaps = {threshold: _gap(sums) for threshold, sums in self.above.items()}
        foreground_gap = _gap(self.foreground)
        return HeldOutErrors(self.nll, self.brier, self.weight, gaps, foreground_gap, num_folds)


def _gap(sums: Tensor) -> float:
    weight, score, right = sums.tolist()
    return (score - right) / weight if weight else math.nan
