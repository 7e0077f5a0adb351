"""The teacher: built when training starts, frozen, and no part of the student."""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Callable

import torch
from mmdet.registry import MODELS
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from calkd_det.calibration import Calibrator
from calkd_det.config import build_from_config, check_keys, check_number
from calkd_det.errors import ConfigError, TeacherError, did_you_mean
from calkd_det.taps import ClassifierSamples, Tap, find_tap
from calkd_det.taps.base import ROIS
from calkd_det.teachers.checkpoint import load_weights
from calkd_det.teachers.class_map import match_classes
from calkd_det.teachers.folding import fold_batchnorm
from calkd_det.teachers.input_map import match_inputs
from calkd_det.teachers.source import (
    CHECKPOINT_KEY,
    CONFIG_KEY,
    TeacherSource,
    check_source,
    read_source,
)
from calkd_det.teachers.stages import check_stages, match_stages

PRECISIONS = {
    'float32': torch.float32,
    'bfloat16': torch.bfloat16,
    'float16': torch.float16,
}


class TeacherNetwork(nn.Module):
    """A frozen detector that classifies another detector's samples.

    Args:
        detector: The teacher's detector, its weights loaded.
        tap: Knows its head.
        calibrator: Applied to its logits.
        input_map: From the student's normalised images to the teacher's.
        class_map: From the teacher's classes to the student's; None where they are the same.
        classifiers: By the name of each of the student's classifiers that of the teacher's which
            answers for it; None for the same names.
        channels_last: Whether its convolutions run in channels_last memory format.
        precision: A key of ``PRECISIONS`` that the network computes in; None for that of the
            autocast around it.
    """

    def __init__(
        self,
        detector: nn.Module,
        tap: Tap,
        calibrator: Calibrator,
        input_map: nn.Module,
        class_map: nn.Module | None,
        precision: str | None = None,
        classifiers: dict[str, str] | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        detector = revert_sync_batchnorm(detector).eval()
        tap.keep_classifier(detector)
        self.detector = fold_batchnorm(detector)
        if channels_last:
            self.detector.to(memory_format=torch.channels_last)
        self.tap = tap
        self.calibrator = calibrator
        self.input_map = input_map
        self.class_map = class_map
        self.precision = precision
        self.classifiers = classifiers or {}
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(
        self,
        images: Tensor,
        image_shapes: Sequence[tuple[int, int]],
        samples: Sequence[ClassifierSamples],
    ) -> list[Tensor]:
        """Classifies samples.

        Args:
            images: The student's normalised batch, shape (B, 3, H, W).
            image_shapes: Height and width in pixels of each image, without its padding.
            samples: What the student's classifiers saw.

        Returns:
            For each entry of ``samples`` the calibrated logits over the student's classes,
            float32, of the shape of its ``logits``.
        """
        answers = []
        with self._autocast(images.device.type):
            feats = self.detector.extract_feat(self.input_map(images, image_shapes))
            feats = self.tap.prepare(self.detector, feats)
            # mmcv's RoIAlign knows no bfloat16, and misreads channels_last in silence.
            feats = tuple(feat.to(images.dtype).contiguous() for feat in feats)
            for group in samples:
                group = replace(group, name=self.classifiers.get(group.name, group.name))
                answers.append(self.calibrate(self.tap.classify(self.detector, feats, group)))
        return answers

    def calibrate(self, logits: Tensor) -> Tensor:
        """Calibrates logits over the teacher's classes, and maps them to the student's."""
        logits = self.calibrator(logits)
        return logits if self.class_map is None else self.class_map(logits)

    def _autocast(self, device_type: str) -> AbstractContextManager:
        if self.precision is None:
            return nullcontext()
        if self.precision == 'float32':
            return torch.autocast(device_type, enabled=False)
        return torch.autocast(device_type, PRECISIONS[self.precision])


class FrozenTeacher:
    """Holds what a config says of a teacher, and the network once :meth:`build` has made it.

    It is no ``nn.Module``, so that the student that holds it has neither its weights nor its
    mode: nothing of it is in the student's state dict, optimizer, gradient clipping, EMA or
    DDP buckets. A deep copy is the same teacher, a pickled one has lost its network.

    Args:
        config: Path of an mmdet config, ``mmdet::FAMILY/NAME.py``, or a dict.
        checkpoint: Path or URL; None for the one that the model zoo lists for ``config``.
        calibrator: Config of a :class:`~calkd_det.calibration.Calibrator`; None for
            ``TemperatureScaling(temperature=1.5)``.
        precision: ``'float32'``, ``'bfloat16'`` or ``'float16'``: what the teacher computes in,
            whatever the student does; None for that of the autocast around the step.
        stages: For each stage of a cascade student the number of the teacher's stage that
            teaches it; None for each its own.
        channels_last: Run its convolutions in channels_last memory format. The logits are the
            same up to rounding; which is faster depends on device and precision.
        roi_fraction: Share of the RoIs, in (0, 1], that it is asked about, see
            :func:`~calkd_det.detectors.roi_fraction.hardest_samples`.

    Attributes:
        network: None until :meth:`build`.
        identity: Set by :meth:`build`. What makes this teacher, by config key: a text for the
            reader, and a digest of the content behind it.

    Raises:
        ConfigError: A value is of the wrong type or contradicts another. No file is read.
    """

    def __init__(
        self,
        config: str | dict,
        checkpoint: str | None = None,
        calibrator: dict | None = None,
        precision: str | None = None,
        stages: Sequence[int] | None = None,
        channels_last: bool = False,
        roi_fraction: float = 1.0,
    ) -> None:
        check_source(config, checkpoint)
        check_stages(stages)
        if precision not in (None, *PRECISIONS):
            raise ConfigError(
                "model.teacher.precision must be 'float32', 'bfloat16', 'float16' or None (that "
                f'of the step), but is {precision!r}; {did_you_mean(str(precision), PRECISIONS)}'
            )
        if not isinstance(channels_last, bool):
            raise ConfigError(
                f'model.teacher.channels_last must be True or False, but is {channels_last!r}'
            )
        self.roi_fraction = check_number(roi_fraction, 'model.teacher.roi_fraction')
        if self.roi_fraction > 1:
            raise ConfigError(
                f'model.teacher.roi_fraction must be a share in (0, 1], but is {roi_fraction!r}'
            )
        self.channels_last = channels_last
        self.config = config
        self.checkpoint = checkpoint
        self.precision = precision
        self.stages = stages
        if calibrator is None:
            calibrator = dict(type='TemperatureScaling')
        self.calibrator = build_from_config(MODELS, calibrator, 'model.teacher.calibrator')
        if not isinstance(self.calibrator, Calibrator):
            raise ConfigError(
                'model.teacher.calibrator.type must be a Calibrator such as TemperatureScaling, '
                f'but is {type(self.calibrator).__name__}'
            )
        self.network: TeacherNetwork | None = None
        self.identity: dict[str, tuple[str, str]] = {}

    @classmethod
    def from_config(cls, cfg: Any) -> FrozenTeacher:
        """Builds the holder from the ``teacher`` dict of a model's config.

        Raises:
            ConfigError: An unknown or missing key, or see the constructor.
        """
        known = set(inspect.signature(cls).parameters)
        check_keys(cfg, 'model.teacher', known=known, required={'config'})
        return cls(**cfg)

    def build(self, student: nn.Module, student_classes: Sequence[str] | None = None) -> None:
        """Reads config and weights and makes the network fit the student.

        The state of torch's random number generator is kept, so that a distilled student gets
        the initial weights and the sampling that the plain one would.

        Args:
            student: The detector that will be distilled; it says where the network is to live.
            student_classes: Its class names, None if unknown.

        Raises:
            TeacherError: Config or checkpoint cannot be read or do not fit each other.
            ConfigError: Head, classes or normalisation do not fit the student, or the
                calibrator's file cannot be read.
        """
        self.calibrator.prepare()
        source = read_source(self.config, self.checkpoint)
        with torch.random.fork_rng(devices=[]):
            detector = build_detector(source)
        tap = find_tap(detector, CONFIG_KEY)
        student_tap = find_tap(student, 'model')
        if tap.activation(detector) != student_tap.activation(student):
            raise ConfigError(
                f'{CONFIG_KEY}: the teacher classifies by {tap.activation(detector)}, the '
                f'student by {student_tap.activation(student)}: their logits cannot be compared'
            )
        sampled = student_tap.sampled(student), tap.sampled(detector)
        if sampled[0] != sampled[1]:
            raise ConfigError(
                f'{CONFIG_KEY}: the student classifies {sampled[0]}, the teacher {sampled[1]}: it '
                "cannot be asked about the student's samples"
            )
        if self.roi_fraction < 1 and sampled[0] != ROIS:
            raise ConfigError(
                'model.teacher.roi_fraction must be 1 for a detector that does not sample RoIs: '
                'its teacher classifies whole feature maps'
            )
        classifiers = match_stages(
            self.stages, student_tap.classifiers(student), tap.classifiers(detector)
        )
        stored_classes = load_weights(detector, source.checkpoint)
        teacher_classes = stored_classes or source.classes
        num_classes = student_tap.num_classes(student), tap.num_classes(detector)
        num_logits = num_classes[1] + (tap.activation(detector) == 'softmax')
        probe = self.calibrator(torch.ones(1, num_logits))  # one that does not fit says so here
        self.identity = {
            CONFIG_KEY: (
                self.config if isinstance(self.config, str) else 'a dict',
                _digest([str(source.model).encode()]),
            ),
            CHECKPOINT_KEY: (
                source.checkpoint,
                _digest(map(tensor_bytes, detector.state_dict().values())),
            ),
            'model.teacher.calibrator': (str(self.calibrator), _digest([tensor_bytes(probe)])),
            **{
                f'model.teacher.{name}': (str(value), str(value))
                for name, value in (
                    ('precision', self.precision),
                    ('stages', self.stages),
                    ('roi_fraction', self.roi_fraction),
                )
            },
        }
        class_map = match_classes(
            student_classes, teacher_classes, *num_classes, tap.activation(detector)
        )
        network = TeacherNetwork(
            detector,
            tap,
            self.calibrator,
            match_inputs(student.data_preprocessor, detector.data_preprocessor),
            class_map,
            self.precision,
            classifiers,
            self.channels_last,
        )
        self.network = network.to(next(student.parameters()).device)
        self._log(source, student_classes, teacher_classes)
        if tap.activation(detector) == 'sigmoid' and probe.mean() < 1:
            print_log(
                f'model.teacher.calibrator: {self.calibrator} makes the teacher less confident. '
                'Under sigmoid that raises the scores of all background, of which there is most: '
                'fit T with tools/calibrate_teacher.py.',
                logger='current',
                level=logging.WARNING,
            )

    def _apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Follows the student to another device or precision."""
        if self.network is not None:
            self.network._apply(fn)

    def __call__(
        self,
        images: Tensor,
        image_shapes: Sequence[tuple[int, int]],
        samples: Sequence[ClassifierSamples],
    ) -> list[Tensor]:
        """See :meth:`TeacherNetwork.forward`."""
        return self.network(images, image_shapes, samples)

    def __deepcopy__(self, memo: dict) -> FrozenTeacher:
        return self

    def __getstate__(self) -> dict:
        return {**self.__dict__, 'network': None}

    def _log(
        self,
        source: TeacherSource,
        student_classes: Sequence[str] | None,
        teacher_classes: Sequence[str] | None,
    ) -> None:
        class_map = self.network.class_map
        if class_map is not None:
            classes = (
                f'{len(class_map.columns)} classes matched by name, '
                f'{class_map.num_others} of its own count as background'
            )
        elif student_classes is None or teacher_classes is None:
            who = 'the student' if student_classes is None else 'the teacher'
            print_log(
                f'The class names of {who} are unknown: teacher and student are taken to have '
                'the same classes in the same order.',
                logger='current',
                level=logging.WARNING,
            )
            classes = 'classes not compared by name'
        else:
            classes = f'the same {len(teacher_classes)} classes as the student'
        inputs = self.network.input_map
        print_log(
            f'Teacher: {type(self.network.detector).__name__} with the weights of '
            f'{source.checkpoint}, {self.calibrator}; {classes}; images '
            f'{"re-normalised for it" if inputs.renormalise else "normalised alike"}.',
            logger='current',
        )


def build_detector(source: TeacherSource) -> nn.Module:
    """Builds a teacher's whole detector, without its weights.

    Raises:
        TeacherError: mmdet cannot build it.
    """
    try:
        # mmdet's own classes are meant, whatever scope the student's config works in.
        with DefaultScope.overwrite_default_scope('mmdet'):
            return MODELS.build(source.model)
    # Whatever mmdet raises on a wrong model config, the user must be told whose it is.
    except Exception as error:
        raise TeacherError(
            f'{CONFIG_KEY}: mmdet cannot build this detector ({type(error).__name__}: {error})'
        ) from error


def tensor_bytes(tensor: Tensor) -> bytes:
    """The content of a tensor of any dtype and device."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
