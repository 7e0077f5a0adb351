"""The mixin that makes an mmdet detector a distilled one."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmengine.logging import MessageHub, print_log
from torch import Tensor, nn

from calkd_det.config import build_from_config, without_delete_keys
from calkd_det.detectors.compiling import outside_compiler
from calkd_det.detectors.diagnosis import diagnose
from calkd_det.detectors.evidence import TeacherEvidence
from calkd_det.detectors.finite_watch import FiniteWatch
from calkd_det.detectors.learnt_parts import (
    find_learnt_parts,
    register_learnt_parts_hook,
    without_learnt_parts,
)
from calkd_det.detectors.runner_data import training_dataset
from calkd_det.detectors.training_alone import NOT_GIVEN, tell_training_alone
from calkd_det.detectors.undistillable import check_no_own_teacher, check_tracker
from calkd_det.errors import ConfigError, did_you_mean
from calkd_det.knowledge import HeadSamples, Kind, Knowledge, kind_of
from calkd_det.losses import BoxLoss, DistillationLoss
from calkd_det.taps import DENOISING, find_taps
from calkd_det.teachers import FrozenTeacher
from calkd_det.teachers.class_names import dataset_class_names, meta_class_names

RESUME_KEY = 'calkd_teacher'  # in the message hub, which checkpoints carry


class DistillationMixin:
    """A detector class with a calibrated teacher, whose losses are added to its own.

    Each detector class of mmdet has one such class, see
    :func:`~calkd_det.detectors.registered.make_counterparts`, and a class of one's own gets one by
    :func:`~calkd_det.detectors.register_distilled`.

    The detector's modules, state dict and predictions stay those of the plain class. Without
    ``teacher`` or ``distillation``, or with ``loss_weight=0``, so does its training step. Losses
    with learnt parts are its child ``learnt_parts``, of which its state dict holds nothing.

    Attributes:
        stopped: Whether distillation has ended before the training, see
            :class:`~calkd_det.hooks.StopDistillationHook`.

    Args:
        teacher: ``dict(config=..., checkpoint=..., calibrator=...)``, see
            :class:`~calkd_det.teachers.FrozenTeacher`. Loaded when training starts.
        distillation: Config of a distillation loss, which is logged as ``loss_kd``; or a dict of
            several by name, logged as ``loss_kd_<name>``. None trains the plain student. So does a
            missing key, with a warning.

    Raises:
        ConfigError: A key is unknown, missing, mistyped or out of range, ``distillation`` comes
            without ``teacher``, or the detector's head is one that no tap knows.
    """

    def __init__(
        self,
        *args: Any,
        teacher: dict | None = NOT_GIVEN,
        distillation: dict | None = NOT_GIVEN,
        **kwargs,
    ) -> None:
        alone_by_choice = teacher is None or distillation is None
        teacher = None if teacher is NOT_GIVEN else teacher
        distillation = None if distillation is NOT_GIVEN else distillation
        try:
            super().__init__(*args, **kwargs)
        except TypeError as error:
            known = _arguments(type(self))
            unknown = sorted(set(kwargs) - known)
            if not unknown:
                raise
            hint = did_you_mean(unknown[0], known)
            raise ConfigError(f'model has no key {unknown[0]!r}: {hint}') from error
        check_no_own_teacher(self)
        if distillation is not None and teacher is None:
            raise ConfigError(
                'model.distillation is set, but model.teacher is not: add '
                "teacher=dict(config=..., checkpoint=...), or 'distillation=None' for the plain "
                'student'
            )
        self.teacher = None if teacher is None else FrozenTeacher.from_config(teacher)
        # The student samples and is initialised as if no loss had learnt parts.
        with torch.random.fork_rng(devices=[]):
            self.distillation = build_losses(distillation)
        self.learnt_parts = find_learnt_parts(self.distillation)
        self._check_losses()
        self.stopped = False
        self._finite_watch = FiniteWatch()
        self._evidence = TeacherEvidence()
        self._checked_resume = False
        self._alone_by_choice = alone_by_choice
        self._told_alone = False

    def init_weights(self) -> None:
        """Initialise the student as the plain detector does, then load the teacher.

        The student gets what it inherits of the teacher here. A Runner loads the checkpoint of
        ``load_from`` or of a resumed run after this, and so replaces it.
        """
        has_weights = self.is_init
        with without_learnt_parts(self):
            super().init_weights()
        register_learnt_parts_hook(self.learnt_parts)
        self._tell_alone()
        if self.distilling:
            check_tracker(self)
            self._build_teacher(initialise=not has_weights)

    @property
    def distilling(self) -> bool:
        """Whether a step calls the teacher."""
        return not self.stopped and any(loss.loss_weight for loss in self.distillation.values())

    @property
    def knowledge_kinds(self) -> frozenset[Kind]:
        """The kinds of knowledge that the losses which are switched on compare."""
        return frozenset(kind_of(loss) for loss in self.distillation.values() if loss.loss_weight)

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList, **kwargs: Any) -> dict:
        """Compute the plain detector's losses and those of distillation.

        Args:
            batch_inputs: Normalised images, float, shape (B, 3, H, W).
            batch_data_samples: Annotations and meta information of each image.
            **kwargs: Passed to the plain detector's loss.

        Returns:
            Losses by name, and diagnostics under names without ``loss``.
        """
        if not self.distilling:
            if self.training:
                self._tell_alone()
            losses = super().loss(batch_inputs, batch_data_samples, **kwargs)
            if self.stopped and self.learnt_parts is not None:
                losses.update(self.learnt_parts.zeros())
            return losses
        return self._distilled_loss(batch_inputs, batch_data_samples, **kwargs)

    # Dynamo does not see the tap's hooks: inside torch.compile the step runs as written.
    @outside_compiler
    def _distilled_loss(
        self, batch_inputs: Tensor, batch_data_samples: SampleList, **kwargs: Any
    ) -> dict:
        if self.teacher.network is None:
            self._build_teacher()
        if not self._checked_resume:
            self._check_resume()
        self._finite_watch.report()
        shapes = [data_sample.img_shape[:2] for data_sample in batch_data_samples]
        # First, while none of the student's activations are kept for its backward.
        feats = self.teacher.extract_feat(batch_inputs, shapes)
        taps = find_taps(self, self.knowledge_kinds, 'model')
        with taps.record(self, batch_data_samples) as knowledge:
            losses = super().loss(batch_inputs, batch_data_samples, **kwargs)
        losses.update(self.distillation_losses(feats, self.teacher.taught(knowledge)))
        return losses

    def distillation_losses(
        self, teacher_feats: tuple[Tensor, ...], knowledge: Sequence[Knowledge]
    ) -> dict[str, Tensor]:
        """Run the teacher, compare, and diagnose.

        Args:
            teacher_feats: The teacher's features of the batch.
            knowledge: What the student computed in its own loss.

        Returns:
            The losses of distillation and what the log tells of the teacher.
        """
        logs: dict[str, Tensor] = {}
        answers = self.teacher(teacher_feats, knowledge)
        self._finite_watch.note(knowledge, answers)
        answered = [piece.without_non_finite(answer) for piece, answer in zip(knowledge, answers)]
        of_heads = [(a, b.logits) for a, b in answered if isinstance(a, HeadSamples)]
        # The input of a denoising query tells its label, also to a teacher with wrong class names.
        self._evidence.note(self, [pair for pair in of_heads if pair[0].name != DENOISING])
        for piece, answer in answered:
            prefix = f'{piece.name}.' if piece.name else ''
            for name, loss in self.distillation.items():
                if loss.loss_weight != 0 and kind_of(loss) in piece.kinds:
                    logs[prefix + name] = piece.factor * piece.compare(loss, answer)
        for samples, teacher_logits in of_heads:
            prefix = f'{samples.name}.' if samples.name else ''
            figures = diagnose(samples, teacher_logits)
            logs.update({prefix + name: value for name, value in figures.items()})
        return logs

    def _tell_alone(self) -> None:
        if not (self.distillation or self._told_alone):  # build_losses logs a weight of 0
            self._told_alone = True
            tell_training_alone(self, self._alone_by_choice)

    def _build_teacher(self, initialise: bool = False) -> None:
        kinds = self.knowledge_kinds
        self.teacher.build(self, self._class_names(), training_dataset(), kinds, initialise)
        for name, loss in self.distillation.items():
            if isinstance(loss, DistillationLoss) and loss.loss_weight:
                loss.check_sizes(self.teacher.sizes, config_key(name))

    def _check_resume(self) -> None:
        """Warn where a resumed run has another teacher than it was started with."""
        self._checked_resume = True
        hub = MessageHub.get_current_instance()
        losses = ', '.join(map(str, self.distillation.values()))
        now = {**self.teacher.identity, 'model.distillation': (losses, losses)}
        start = hub.get_info(RESUME_KEY)
        if start is None:
            hub.update_info(RESUME_KEY, now)
        # Only a Runner counts iterations there, and only a resumed one begins above zero.
        elif hub.get_info('iter', 0) > 0:
            for key, (text, content) in now.items():
                old_text, old_content = start.get(key, (text, content))
                if content != old_content:
                    print_log(
                        f'Resumed with another {key}: {text}, but the run was started with '
                        f'{old_text}{" of other content" if text == old_text else ""}.',
                        logger='current',
                        level=logging.WARNING,
                    )

    def _class_names(self) -> tuple[str, ...] | None:
        """Return the student's class names by label, of the data set that it trains on.

        Outside a Runner they are those of ``dataset_meta``, None without it.
        """
        dataset = training_dataset()
        names = None if dataset is None else dataset_class_names(dataset)
        return names or meta_class_names(getattr(self, 'dataset_meta', None))

    def _check_losses(self) -> None:
        """Check that the detector has what the losses compare."""
        if not self.distillation:
            return
        kinds = frozenset(map(kind_of, self.distillation.values()))
        taps = find_taps(self, kinds, 'model')
        for name, loss in self.distillation.items():
            if kind_of(loss) == 'class' and loss.activation != taps.head.activation(self):
                raise ConfigError(
                    f'model.distillation: {type(loss).__name__} compares {loss.activation} '
                    f'scores, but the student classifies by {taps.head.activation(self)}'
                )
            if isinstance(loss, BoxLoss):
                bins = taps.head.distribution_bins(self)
                loss.check_bins(bins, bins, config_key(name))


def _arguments(cls: type) -> set[str]:
    """Return the arguments of a detector's constructor and of those of its bases."""
    names = {name for base in cls.__mro__ for name in inspect.signature(base.__init__).parameters}
    return names - {'self', 'args', 'kwargs'}


def config_key(name: str) -> str:
    """Return the config key of a loss by the name that it is logged under."""
    return 'model.distillation' + name.removeprefix('loss_kd').replace('_', '.', 1)


def build_losses(cfg: Any) -> dict[str, nn.Module]:
    """Build one loss, or a dict of several, by the names that they are logged under."""
    if cfg is None:
        return {}
    key = 'model.distillation'
    cfg = without_delete_keys(cfg)
    several = isinstance(cfg, Mapping) and 'type' not in cfg
    if several and not (cfg and all(isinstance(value, Mapping) for value in cfg.values())):
        raise ConfigError(
            f"{key} must be the config of a loss, dict(type='KDLoss', ...), or a dict of several "
            f'by name, but is {dict(cfg)!r}'
        )
    cfgs = (
        {f'loss_kd_{name}': (value, f'{key}.{name}') for name, value in cfg.items()}
        if several
        else {'loss_kd': (cfg, key)}
    )
    losses = {name: build_from_config(MODELS, loss, where) for name, (loss, where) in cfgs.items()}
    for (_, where), loss in zip(cfgs.values(), losses.values()):
        if not hasattr(loss, 'loss_weight') or not (
            isinstance(loss, DistillationLoss) or hasattr(loss, 'activation')
        ):
            raise ConfigError(
                f'{where}.type must be a distillation loss such as KDLoss, but is '
                f'{type(loss).__name__}'
            )
    if all(loss.loss_weight == 0 for loss in losses.values()):
        print_log(
            f'{key}.loss_weight is 0: no teacher is loaded, the student trains alone.',
            logger='current',
        )
    return losses
