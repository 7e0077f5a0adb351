"""Hook that logs how well the teacher is calibrated on the samples of the training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from mmdet.registry import HOOKS
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from calkd_det.calibration.reliability import Reliability, ReliabilityAccumulator
from calkd_det.detectors.diagnosis import predict
from calkd_det.errors import ConfigError
from calkd_det.hooks.distilled_model import distilled_model
from calkd_det.knowledge import HeadSamples, Knowledge
from calkd_det.taps import DENOISING

MAX_SAMPLES = 16_384  # of a classifier in a step

# By the name in the log.
DESCRIPTIONS = {
    'teacher_ece': 'foreground samples',
    'teacher_ece_all': 'samples, foreground and background,',
}


@HOOKS.register_module()
class TeacherCalibrationHook(Hook):
    """Hook that logs the calibrated teacher's ECE on the samples since training began or resumed.

    The hook reads the logits that distillation computes, so it adds no forward. It logs beside the
    losses (top-label, equal-width bins; ECE = over + under, Kim et al. 2025):

    - ``teacher_ece``, ``teacher_ece_over`` and ``teacher_ece_under`` of the foreground: the samples
      and predictions of ``teacher_accuracy`` and ``teacher_confidence``;
    - ``teacher_ece_all``, ``teacher_ece_all_over`` and ``teacher_ece_all_under`` of foreground and
      background. A background sample of a head of sigmoids counts as a miss, whatever its score.

    Once an epoch it also logs whether T leaves the teacher over- or under-confident on each. On the
    images that it was trained on, a teacher looks better calibrated than it is.

    A dense head has hundreds of thousands of samples a step. For the second three the hook reads
    every n-th one, at most :data:`MAX_SAMPLES`, with another offset at each step.

    Args:
        interval: Number of iterations between updates of the log, > 0.
        num_bins: Number of bins of the ECE, > 0.

    Raises:
        ConfigError: An argument is not an integer > 0; or, when training starts, the model is not
            a distilled detector.
    """

    priority = 'NORMAL'  # before the LoggerHook

    def __init__(self, interval: int = 50, num_bins: int = 15) -> None:
        for key, value in (('interval', interval), ('num_bins', num_bins)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(
                    f'custom_hooks: TeacherCalibrationHook.{key} must be an integer > 0, '
                    f'but is {value!r}'
                )
        self.interval = interval
        self.totals = {name: ReliabilityAccumulator(num_bins) for name in DESCRIPTIONS}
        self._unbinned: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in DESCRIPTIONS}
        self._steps = 0
        self._handle: RemovableHandle | None = None

    def before_train(self, runner: Runner) -> None:
        model = distilled_model(runner, self)
        if model.teacher is not None and model.teacher.network is not None:
            self._handle = model.teacher.network.register_forward_hook(self._record_samples)

    def after_train(self, runner: Runner) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        end_of_epoch = self.end_of_epoch(runner.train_dataloader, batch_idx)
        if self._handle is None or not (
            end_of_epoch or self.every_n_train_iters(runner, self.interval)
        ):
            return
        for name, reliability in self._bin_samples().items():
            figures = {
                f'train/{name}': reliability.ece,
                f'train/{name}_over': reliability.ece_over,
                f'train/{name}_under': reliability.ece_under,
            }
            runner.message_hub.update_scalars(figures)
            if end_of_epoch:
                runner.logger.info(describe(reliability, DESCRIPTIONS[name]))

    def _record_samples(
        self,
        network: nn.Module,
        args: tuple[tuple[Tensor, ...], Sequence[Knowledge]],
        answers: Sequence[Any],
    ) -> None:
        # Kept on the device: binning checks its input, which would synchronise each step again. The
        # number of foreground samples already does, as it does in mmdet's own loss.
        for samples, answer in zip(args[1], answers):
            # The input of a denoising query tells its label.
            if not isinstance(samples, HeadSamples) or samples.name == DENOISING:
                continue
            counted = samples.weights > 0
            if answer.answered is not None:
                counted &= answer.answered
            foreground = counted & (samples.labels < samples.num_classes)
            chosen = {
                'teacher_ece': foreground.nonzero().squeeze(1),
                'teacher_ece_all': self._select_rows(len(samples)),
            }
            for name, rows in chosen.items():
                confidence, prediction = predict(answer.logits[rows], samples.activation)
                hit = prediction == samples.labels[rows]
                if samples.activation == 'sigmoid':
                    hit &= foreground[rows]
                confidence = confidence.masked_fill(~counted[rows], math.nan)
                self._unbinned[name].append((confidence, hit))

    def _select_rows(self, num_samples: int) -> slice:
        """Select every n-th sample of a dense head, with another offset at each step."""
        stride = -(-num_samples // MAX_SAMPLES) or 1
        self._steps += 1
        return slice(self._steps % stride, None, stride)

    def _bin_samples(self) -> dict[str, Reliability]:
        """Return the reliability by the name of the log; nothing where there are no samples."""
        found = {}
        for name, total in self.totals.items():
            if self._unbinned[name]:
                confidence, hit = (torch.cat(values) for values in zip(*self._unbinned[name]))
                # Samples without weight are NaN, and so are those of a run that diverged.
                finite = confidence.isfinite()
                if finite.any():
                    total.update_confidences(confidence[finite], hit[finite])
                self._unbinned[name].clear()
            overall = ReliabilityAccumulator(total.sums.shape[1])
            overall.sums = total.sums.clone()
            all_reduce(overall.sums)
            if overall.sums[1].sum() > 0:
                found[name] = overall.compute()
        return found


def describe(reliability: Reliability, samples: str) -> str:
    """Describe a teacher's calibration in one sentence.

    Args:
        reliability: That of some samples.
        samples: What the samples are, such as ``foreground samples``.
    """
    confidence, accuracy = reliability.mean_confidence, reliability.mean_accuracy
    side = 'over-confident' if confidence > accuracy else 'under-confident'
    return (
        f'The calibrated teacher is {side} on {reliability.num_samples} {samples} of the '
        f'training: mean confidence {confidence:.4f}, accuracy {accuracy:.4f}, ECE '
        f'{reliability.ece:.4f} (over {reliability.ece_over:.4f}, under '
        f'{reliability.ece_under:.4f}).'
    )
