"""Hook that logs how well the teacher is calibrated on the samples of the training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from mmdet.registry import HOOKS
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from calkd_det.calibration.reliability import Reliability, ReliabilityAccumulator
from calkd_det.calibration.scores import class_scores
from calkd_det.detectors import DistillationMixin
from calkd_det.errors import ConfigError
from calkd_det.knowledge import HeadSamples, Knowledge
from calkd_det.taps import DENOISING, MaskQueryTap, QueryTap

MAX_SAMPLES = 16_384  # of a classifier in a step
# Of the queries of a detection transformer: those with an object, and the others.
MATCHED, REST = 'matched', 'rest'


@HOOKS.register_module()
class TeacherCalibrationHook(Hook):
    """Hook that logs the calibrated teacher's ECE on all samples since training began or resumed.

    The hook reads the logits that distillation computes, so it adds no forward. It logs
    ``teacher_ece``, ``teacher_ece_over`` and ``teacher_ece_under`` beside the losses (top-label,
    equal-width bins; ECE = over + under, Kim et al. 2025). Once an epoch it also logs whether T
    leaves the teacher over- or under-confident. On the images that it was trained on, a teacher
    looks better calibrated than it is.

    A dense head has hundreds of thousands of samples a step. Of these the hook reads every n-th
    one, at most :data:`MAX_SAMPLES`, with another offset at each step. A background sample of a
    dense head counts as a miss, whatever its score.

    A trained detection transformer gives one query an object a high score and low ones to the
    others. The hook also logs ``teacher_ece_matched`` of the queries that are assigned to an
    object, and ``teacher_ece_rest`` of the others, of which each counts as a miss under sigmoid.

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
        self.num_bins = num_bins
        self.total = ReliabilityAccumulator(num_bins)
        self.parts: dict[str, ReliabilityAccumulator] = {}
        self._unbinned: list[tuple[Tensor, Tensor, Tensor]] = []
        self._steps = 0
        self._handle: RemovableHandle | None = None

    def before_train(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if not isinstance(model, DistillationMixin):
            raise ConfigError(
                'custom_hooks: TeacherCalibrationHook needs a distilled detector, but model.type '
                f'is {type(model).__name__}: remove the hook, or use a CalKD detector'
            )
        if model.teacher is not None and model.teacher.network is not None:
            network = model.teacher.network
            has_queries = isinstance(network.taps.head, (QueryTap, MaskQueryTap))
            names = (MATCHED, REST) if has_queries else ()
            self.parts = {name: ReliabilityAccumulator(self.num_bins) for name in names}
            self._handle = network.register_forward_hook(self._record_samples)

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
        reliability = self._bin_samples()
        parts = {name: over_processes(total) for name, total in self.parts.items()}
        if reliability is None:
            return
        figures = {
            'train/teacher_ece': reliability.ece,
            'train/teacher_ece_over': reliability.ece_over,
            'train/teacher_ece_under': reliability.ece_under,
        }
        parts = {name: part for name, part in parts.items() if part is not None}
        figures |= {f'train/teacher_ece_{name}': part.ece for name, part in parts.items()}
        runner.message_hub.update_scalars(figures)
        if end_of_epoch:
            of_parts = [describe_part(name, part) for name, part in parts.items()]
            runner.logger.info(' '.join([describe(reliability), *of_parts]))

    def _record_samples(
        self,
        network: nn.Module,
        args: tuple[tuple[Tensor, ...], Sequence[Knowledge]],
        answers: Sequence[Any],
    ) -> None:
        # Kept on the device, because binning checks its input, which would synchronise each step.
        for samples, answer in zip(args[1], answers):
            # The input of a denoising query tells its label.
            if not isinstance(samples, HeadSamples) or samples.name == DENOISING:
                continue
            rows = self._select_rows(len(samples))
            logits, labels = answer.logits[rows], samples.labels[rows]
            confidence, prediction = class_scores(logits, samples.activation).max(dim=1)
            left_out = samples.weights[rows] == 0
            if answer.answered is not None:
                left_out |= ~answer.answered[rows]
            confidence = confidence.masked_fill(left_out, math.nan)
            matched = labels < samples.num_classes
            self._unbinned.append((confidence, prediction == labels, matched))

    def _select_rows(self, num_samples: int) -> slice:
        """Select every n-th sample of a dense head, with another offset at each step."""
        stride = -(-num_samples // MAX_SAMPLES) or 1
        self._steps += 1
        return slice(self._steps % stride, None, stride)

    def _bin_samples(self) -> Reliability | None:
        if self._unbinned:
            confidence, hit, matched = (torch.cat(values) for values in zip(*self._unbinned))
            # Samples without weight are NaN, and so are those of a run that diverged.
            finite = confidence.isfinite()
            if finite.any():
                self.total.update_confidences(confidence[finite], hit[finite])
            for name, part in self.parts.items():
                rows = finite & (matched if name == MATCHED else ~matched)
                if rows.any():
                    part.update_confidences(confidence[rows], hit[rows])
            self._unbinned.clear()
        return over_processes(self.total)


def over_processes(total: ReliabilityAccumulator) -> Reliability | None:
    """Return the reliability of the samples of all processes; None where there are none."""
    overall = ReliabilityAccumulator(total.sums.shape[1])
    overall.sums = total.sums.clone()
    all_reduce(overall.sums)
    return overall.compute() if overall.sums[1].sum() > 0 else None


def describe(reliability: Reliability) -> str:
    """Describe a teacher's calibration in one sentence."""
    confidence, accuracy = reliability.mean_confidence, reliability.mean_accuracy
    side = 'over-confident' if confidence > accuracy else 'under-confident'
    return (
        f'The calibrated teacher is {side} on {reliability.num_samples} training samples: mean '
        f'confidence {confidence:.4f}, accuracy {accuracy:.4f}, ECE {reliability.ece:.4f} '
        f'(over {reliability.ece_over:.4f}, under {reliability.ece_under:.4f}).'
    )


def describe_part(name: str, reliability: Reliability) -> str:
    """Describe a teacher's calibration on a part of the queries in one sentence."""
    return (
        f'Queries {"with" if name == MATCHED else "without"} an object: '
        f'{reliability.num_samples}, mean confidence {reliability.mean_confidence:.4f}, accuracy '
        f'{reliability.mean_accuracy:.4f}, ECE {reliability.ece:.4f}.'
    )
