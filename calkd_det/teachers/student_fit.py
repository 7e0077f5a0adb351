"""Check that a teacher can predict what its student predicts."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from calkd_det.errors import ConfigError
from calkd_det.knowledge import KnowledgeSizes
from calkd_det.taps import DENOISING, KnowledgeTaps, Tap, check_geometry, check_maps, probe_maps
from calkd_det.teachers.channels import input_channels
from calkd_det.teachers.source import CONFIG_KEY
from calkd_det.teachers.stages import match_stages

_DEFAULT_CHANNELS = 3


def match_knowledge(
    student: nn.Module, student_taps: KnowledgeTaps, teacher: nn.Module, teacher_taps: KnowledgeTaps
) -> KnowledgeSizes:
    """Check that a teacher can predict what its student predicts.

    Args:
        student: The student.
        student_taps: Its taps, for the kinds of knowledge that losses compare.
        teacher: The teacher's whole detector.
        teacher_taps: Its taps, for the same kinds.

    Returns:
        Sizes of both, which losses check.

    Raises:
        ConfigError: Heads classify different samples or by scores of different kinds, or feature
            maps are of other levels.
    """
    heads = (student, student_taps.head), (teacher, teacher_taps.head)
    widths = bins = None
    if teacher_taps.head is not None:
        _check_heads(*heads)
    if 'box' in teacher_taps.kinds:
        bins = tuple(tap.distribution_bins(detector) for detector, tap in heads)
    if teacher_taps.features is not None:
        widths = _match_feature_maps(student, teacher)
    return KnowledgeSizes(feature_widths=widths, box_bins=bins)


def _check_heads(student: tuple[nn.Module, Tap], teacher: tuple[nn.Module, Tap]) -> None:
    activations = [tap.activation(detector) for detector, tap in (student, teacher)]
    if activations[0] != activations[1]:
        raise ConfigError(
            f'{CONFIG_KEY}: the teacher classifies by {activations[1]}, the student by '
            f'{activations[0]}: their logits cannot be compared'
        )
    check_geometry(*(tap.geometry(detector) for detector, tap in (student, teacher)), CONFIG_KEY)


def match_classifiers(
    student: tuple[nn.Module, Tap],
    teacher: tuple[nn.Module, Tap],
    stages: Sequence[int] | None,
    denoising: bool,
) -> dict[str, str]:
    """Return the name of the teacher's classifier by the name of the student's that it teaches.

    Args:
        student: The student and its tap.
        teacher: The teacher's detector and its tap.
        stages: Value of ``teacher.stages``.
        denoising: Value of ``teacher.denoising``.

    Raises:
        ConfigError: ``stages`` do not fit, or one of the two has no denoising queries.
    """
    pair = student, teacher
    if stages is None:
        names = [tap.taught_classifiers(detector) for detector, tap in pair]
    else:
        names = [tap.classifiers(detector) for detector, tap in pair]
    matched = match_stages(stages, *names)
    if denoising:
        for who, (detector, tap) in zip(('student', 'teacher'), pair):
            if not tap.has_denoising(detector):
                raise ConfigError(
                    f'model.teacher.denoising is True, but the {who}, a {type(detector).__name__}, '
                    'has no denoising queries: leave it out, or take a DINO or a DDQDETR for both'
                )
        matched[DENOISING] = DENOISING
    return matched


def _match_feature_maps(student: nn.Module, teacher: nn.Module) -> tuple[list[int], list[int]]:
    """Return the numbers of channels of each level of the student, and of the teacher."""
    probes = []
    for detector, key in ((student, 'model'), (teacher, CONFIG_KEY)):
        channels = input_channels(detector) or _DEFAULT_CHANNELS
        probes.append(probe_maps(detector, channels, key))
    check_maps(*probes, CONFIG_KEY)
    return tuple([channels for channels, _, _ in maps] for maps in probes)
