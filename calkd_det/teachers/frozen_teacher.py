"""The teacher: built when training starts, frozen, and no part of the student."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from calkd_det.calibration import Calibrator
from calkd_det.config import (
    build_from_config,
    check_keys,
    inheritance_hint,
    without_delete_keys,
)
from calkd_det.errors import ConfigError, TeacherError, did_you_mean
from calkd_det.knowledge import Kind, Knowledge, KnowledgeSizes
from calkd_det.taps import CLASS, Tap, find_taps
from calkd_det.teachers.checkpoint import load_weights
from calkd_det.teachers.class_map import check_class_names, have_same_classes, match_classes
from calkd_det.teachers.inherit import check_inherit, inherit_weights
from calkd_det.teachers.input_map import check_channels, match_inputs
from calkd_det.teachers.network import PRECISIONS, TeacherNetwork, prepare_detector
from calkd_det.teachers.pipelines import warn_of_pipelines
from calkd_det.teachers.sharing import digest, share_detector, tensor_bytes
from calkd_det.teachers.source import (
    CHECKPOINT_KEY,
    CONFIG_KEY,
    TeacherSource,
    check_source,
    read_source,
)
from calkd_det.teachers.stages import check_stages
from calkd_det.teachers.student_fit import match_classifiers, match_knowledge

# The logit of a background sample with a low score, and others that tell calibrators apart.
_LOW_LOGIT = -4.0
_PROBE_LOGITS = (_LOW_LOGIT, 0.0, 1.0, 4.0)


class FrozenTeacher:
    """What a config says of a teacher, and its network once :meth:`build` has made it.

    It is no ``nn.Module``, so that the student that holds it has neither its weights nor its
    mode: nothing of it is in the student's state dict, optimizer, gradient clipping, EMA or
    DDP buckets, and no ``.half()``, ``.to()`` or ``.to_empty()`` of the student, of a copy or of
    a parent reaches it. It goes to the device of the images when it is called, keeps the dtype
    that it was loaded in, and casts the images. A deep copy is the same teacher, a pickled one
    has lost its network. Holders of equal weights share one network.

    Args:
        config: Path of an mmdet config, ``mmdet::FAMILY/NAME.py``, or a dict.
        checkpoint: Path or URL; None for the one that the model zoo lists for ``config``.
        calibrator: Config of a :class:`~calkd_det.calibration.Calibrator`; None for
            ``TemperatureScaling(temperature=1.5)``.
        precision: ``'float32'``, ``'bfloat16'`` or ``'float16'``: what the teacher computes in,
            whatever the student does; None for that of the autocast around the step.
        stages: For each stage of a cascade student, or each decoder layer of a student with
            queries, the number of the teacher's stage or layer that teaches it. None: each stage
            of a cascade by the teacher's own, and the last decoder layer alone by the last.
        class_names: By the name of a student class that of the teacher's class, where these
            differ, e.g. ``dict(aeroplane='airplane')``.
        inherit: Dotted names of the student's parts that start from the teacher's weights, e.g.
            ``['neck', 'roi_head.bbox_head']``; None for none.
        denoising: Whether the teacher decodes the student's denoising queries as well, noised
            alike, which DINO and DDQ train with. They are compared without matching.

    Attributes:
        network: None until :meth:`build`.
        sizes: Set by :meth:`build`. Sizes of what student and teacher are compared on.
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
        class_names: Mapping[str, str] | None = None,
        inherit: Sequence[str] | None = None,
        denoising: bool = False,
    ) -> None:
        check_source(config, checkpoint)
        check_stages(stages)
        self.class_names = check_class_names(class_names)
        self.inherit = check_inherit(inherit)
        if not isinstance(denoising, bool):
            raise ConfigError(
                f'model.teacher.denoising must be True or False, but is {denoising!r}'
            )
        self.denoising = denoising
        if precision not in (None, *PRECISIONS):
            raise ConfigError(
                "model.teacher.precision must be 'float32', 'bfloat16', 'float16' or None (that "
                f'of the step), but is {precision!r}; {did_you_mean(str(precision), PRECISIONS)}'
            )
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
        self.sizes = KnowledgeSizes()
        self.identity: dict[str, tuple[str, str]] = {}

    @classmethod
    def from_config(cls, cfg: Any) -> FrozenTeacher:
        """Build the holder from the ``teacher`` dict of a model's config.

        Raises:
            ConfigError: An unknown or missing key, or see the constructor.
        """
        cfg = without_delete_keys(cfg)
        known = set(inspect.signature(cls).parameters)
        check_keys(cfg, 'model.teacher', known=known, required={'config'})
        return cls(**cfg)

    def build(
        self,
        student: nn.Module,
        student_classes: Sequence[str] | None = None,
        train_dataset: Any = None,
        kinds: frozenset[Kind] = CLASS,
        initialise: bool = False,
    ) -> None:
        """Read config and weights, and make the network fit the student.

        The state of torch's random number generator is kept, so that a distilled student gets
        the initial weights and the sampling that the plain one would.

        Args:
            student: The detector that will be distilled.
            student_classes: Its class names, None if unknown.
            train_dataset: The data set that it trains on, built or as a config; None if unknown.
            kinds: The kinds of knowledge that losses compare.
            initialise: Whether the student has its initial weights, so that parts of it can start
                from the teacher's.

        Raises:
            TeacherError: Config or checkpoint cannot be read or do not fit each other.
            ConfigError: Head, classes or normalisation do not fit the student, or the
                calibrator's file cannot be read.
        """
        self.calibrator.prepare()
        source = read_source(self.config, self.checkpoint)
        with torch.random.fork_rng(devices=[]):
            detector = build_detector(source)
        check_channels(student, detector)
        taps = find_taps(detector, kinds, CONFIG_KEY)
        student_taps = find_taps(student, kinds, 'model')
        self.sizes = match_knowledge(student, student_taps, detector, taps)
        classifiers = None
        if taps.head is not None:
            classifiers = match_classifiers(
                (student, student_taps.head), (detector, taps.head), self.stages, self.denoising
            )
        stored_classes = load_weights(detector, source.checkpoint)
        teacher_classes = stored_classes or source.classes
        probe = self._probe_calibrator(detector, taps.head)
        self.identity = {
            CONFIG_KEY: (
                self.config if isinstance(self.config, str) else 'a dict',
                digest([str(source.model).encode()]),
            ),
            CHECKPOINT_KEY: (
                source.checkpoint,
                digest(map(tensor_bytes, detector.state_dict().values())),
            ),
            'model.teacher.calibrator': (str(self.calibrator), digest([tensor_bytes(probe)])),
            **{
                f'model.teacher.{name}': (str(value), str(value))
                for name, value in (
                    ('precision', self.precision),
                    ('stages', self.stages),
                    ('class_names', self.class_names),
                    ('inherit', self.inherit),
                    ('denoising', self.denoising),
                )
            },
        }
        class_map = None
        if taps.head is not None:
            class_map = match_classes(
                student_classes,
                teacher_classes,
                student_taps.head.num_classes(student),
                taps.head.num_classes(detector),
                taps.head.activation(detector),
                self.class_names,
            )
            same_classes = class_map is None
        else:
            same_classes = have_same_classes(student_classes, teacher_classes, self.class_names)
        if initialise:
            inherit_weights(student, detector, self.inherit, source.model, same_classes)
        input_map = match_inputs(student.data_preprocessor, detector.data_preprocessor)
        weights = self.identity[CONFIG_KEY][1], self.identity[CHECKPOINT_KEY][1]
        self.network = TeacherNetwork(
            share_detector(prepare_detector(detector, taps), key=''.join(weights)),
            taps,
            self.calibrator,
            input_map,
            class_map,
            self.precision,
            classifiers,
        )
        warn_of_pipelines(student, detector, train_dataset, source.dataset)
        if taps.head is None:
            self._log(source, 'asked for features alone, without classes and calibrator')
        else:
            self._log(source, self._describe_classes(student_classes, teacher_classes))
            if taps.head.activation(detector) == 'sigmoid' and probe[0].mean() > _LOW_LOGIT:
                print_log(
                    f'model.teacher.calibrator: {self.calibrator} makes the teacher less '
                    'confident. Under sigmoid that raises the scores of all background, of which '
                    'there is most: fit T with calkd calibrate.',
                    logger='current',
                    level=logging.WARNING,
                )

    def extract_feat(
        self, images: Tensor, image_shapes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, ...]:
        """See :meth:`TeacherNetwork.extract_feat`; first goes to the device of the images."""
        if not self.network.is_on(images.device):
            self.network.to(images.device)
        return self.network.extract_feat(images, image_shapes)

    def taught(self, knowledge: Sequence[Knowledge]) -> list[Knowledge]:
        """See :meth:`TeacherNetwork.taught`."""
        return self.network.taught(knowledge)

    def __call__(self, feats: tuple[Tensor, ...], knowledge: Sequence[Knowledge]) -> list[Any]:
        """See :meth:`TeacherNetwork.forward`."""
        return self.network(feats, knowledge)

    def __deepcopy__(self, memo: dict) -> FrozenTeacher:
        return self

    def __getstate__(self) -> dict:
        return {**self.__dict__, 'network': None}

    def _probe_calibrator(self, detector: nn.Module, head: Tap | None) -> Tensor:
        """Return the calibrator's logits for a few equal logits, which tell it from another.

        They are empty where there is no head.

        Raises:
            ConfigError: It does not fit the activation or the number of the teacher's classes.
        """
        if head is None:
            return torch.zeros(0)
        activation = head.activation(detector)
        self.calibrator.check_head(activation)
        num_logits = head.num_classes(detector) + (activation == 'softmax')
        return self.calibrator(torch.tensor(_PROBE_LOGITS).unsqueeze(1).repeat(1, num_logits))

    def _describe_classes(
        self, student_classes: Sequence[str] | None, teacher_classes: Sequence[str] | None
    ) -> str:
        class_map = self.network.class_map
        if class_map is not None:
            return (
                f'{len(class_map.columns)} classes matched by name, '
                f'{class_map.num_others} of its own count as background'
            )
        if student_classes is None or teacher_classes is None:
            who = 'the student' if student_classes is None else 'the teacher'
            print_log(
                f'The class names of {who} are unknown: teacher and student are taken to have '
                'the same classes in the same order.',
                logger='current',
                level=logging.WARNING,
            )
            return 'classes not compared by name'
        return f'the same {len(teacher_classes)} classes as the student'

    def _log(self, source: TeacherSource, classes: str) -> None:
        inputs = self.network.input_map
        print_log(
            f'Teacher: {type(self.network.detector).__name__} with the weights of '
            f'{source.checkpoint}, {self.calibrator}; {classes}; images '
            f'{"re-normalised for it" if inputs.renormalise else "normalised alike"}.',
            logger='current',
        )


def build_detector(source: TeacherSource) -> nn.Module:
    """Build a teacher's whole detector, without its weights.

    Raises:
        TeacherError: mmdet cannot build it.
    """
    try:
        # mmdet's own classes are meant, whatever scope the student's config works in. Building
        # changes a config, so that some cannot be built again.
        with DefaultScope.overwrite_default_scope('mmdet'):
            return MODELS.build(copy.deepcopy(source.model))
    # Whatever mmdet raises on a wrong model config, the user must be told whose it is.
    except Exception as error:
        hint = inheritance_hint('config') if 'unexpected keyword' in str(error) else ''
        raise TeacherError(
            f'{CONFIG_KEY}: mmdet cannot build this detector ({type(error).__name__}: {error})'
            f'{hint and f". {hint}"}'
        ) from error
