"""Check that a teacher can be asked what a student is asked."""

from __future__ import annotations

from torch import nn

from calkd_det.errors import ConfigError
from calkd_det.taps import Tap, check_geometry, check_maps, probe_maps
from calkd_det.teachers.channels import input_channels
from calkd_det.teachers.source import CONFIG_KEY

_DEFAULT_CHANNELS = 3


def check_heads(student: nn.Module, student_tap: Tap, teacher: nn.Module, teacher_tap: Tap) -> None:
    """Check that two heads classify the same samples by scores of the same kind.

    Raises:
        ConfigError: They do not.
    """
    activations = student_tap.activation(student), teacher_tap.activation(teacher)
    if activations[0] != activations[1]:
        raise ConfigError(
            f'{CONFIG_KEY}: the teacher classifies by {activations[1]}, the student by '
            f'{activations[0]}: their logits cannot be compared'
        )
    check_geometry(student_tap.geometry(student), teacher_tap.geometry(teacher), CONFIG_KEY)


def match_feature_maps(student: nn.Module, teacher: nn.Module) -> tuple[list[int], list[int]]:
    """Check that the feature maps of two detectors are of the same levels.

    Returns:
        The numbers of channels of each level of the student, and of the teacher.

    Raises:
        ConfigError: They are not, or a detector does not run on a random image.
    """
    probes = []
    for detector, key in ((student, 'model'), (teacher, CONFIG_KEY)):
        channels = input_channels(detector) or _DEFAULT_CHANNELS
        probes.append(probe_maps(detector, channels, key))
    check_maps(*probes, CONFIG_KEY)
    return tuple([channels for channels, _, _ in maps] for maps in probes)
