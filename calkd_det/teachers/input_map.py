"""Map a batch that was normalised for the student to one normalised for the teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import ImgDataPreprocessor
from torch import Tensor, nn

from calkd_det.errors import ConfigError
from calkd_det.teachers.channels import input_channels
from calkd_det.teachers.source import CONFIG_KEY


class InputMap(nn.Module):
    """Map of images that undoes the student's normalisation, applies the teacher's, and pads.

    Normalisation is the channel order, mean and std.

    Args:
        student: The student's data preprocessor.
        teacher: The teacher's data preprocessor.
    """

    def __init__(self, student: ImgDataPreprocessor, teacher: ImgDataPreprocessor) -> None:
        super().__init__()
        (mean_s, std_s), (mean_t, std_t) = _mean_std(student), _mean_std(teacher)
        self.flip = student._channel_conversion != teacher._channel_conversion
        if self.flip:
            mean_s, std_s = _swap_red_and_blue(mean_s, 0), _swap_red_and_blue(std_s, 0)
        self.register_buffer('scale', std_s / std_t)
        self.register_buffer('shift', (mean_s - mean_t) / std_t)
        self.pad_value = float(teacher.pad_value)
        self.divisor = teacher.pad_size_divisor
        self.renormalise = bool(
            self.flip
            or (mean_s != mean_t).any()
            or (std_s != std_t).any()
            or student.pad_value != teacher.pad_value
        )

    def forward(self, images: Tensor, image_shapes: Sequence[tuple[int, int]]) -> Tensor:
        """Map a batch.

        Args:
            images: Normalised for the student, shape (B, C, H, W).
            image_shapes: Height and width in pixels of each image, without its padding.

        Returns:
            Normalised for the teacher, shape (B, C, H', W') with H' >= H, W' >= W. Where nothing
            differs, it is the given tensor itself.
        """
        height, width = images.shape[-2:]
        right = math.ceil(width / self.divisor) * self.divisor - width
        bottom = math.ceil(height / self.divisor) * self.divisor - height
        if self.renormalise:
            images = _swap_red_and_blue(images, 1) if self.flip else images
            images = images * self.scale + self.shift
            for image, (h, w) in zip(images, image_shapes):
                image[:, h:, :] = self.pad_value
                image[:, :, w:] = self.pad_value
        if right or bottom:
            images = F.pad(images, (0, right, 0, bottom), value=self.pad_value)
        return images


def match_inputs(student: nn.Module, teacher: nn.Module) -> InputMap:
    """Build the map between two data preprocessors.

    Raises:
        ConfigError: One of them is no data preprocessor of mmdet's kind, or their means have
            different numbers of channels.
    """
    keys = 'model.data_preprocessor', 'data_preprocessor of model.teacher.config'
    for preprocessor, key in zip((student, teacher), keys):
        if not isinstance(preprocessor, ImgDataPreprocessor):
            raise ConfigError(
                f'{key} is a {type(preprocessor).__name__}: CalKD-Det compares the normalisation '
                'of teacher and student, and must be told it by a DetDataPreprocessor'
            )
    lengths = len(_mean_std(student)[0]), len(_mean_std(teacher)[0])
    if 1 not in lengths and lengths[0] != lengths[1]:
        raise ConfigError(
            f'{keys[0]}.mean has {lengths[0]} channels, the mean of {keys[1]} has {lengths[1]}: '
            "the teacher cannot be given the student's images"
        )
    return InputMap(student, teacher)


def check_channels(student: nn.Module, teacher: nn.Module) -> None:
    """Check that two detectors take images of the same number of channels.

    Raises:
        ConfigError: They do not.
    """
    channels = input_channels(student), input_channels(teacher)
    if None not in channels and channels[0] != channels[1]:
        raise ConfigError(
            f'model.backbone takes images of {channels[0]} channels, the backbone of {CONFIG_KEY} '
            f"images of {channels[1]}: the teacher cannot be given the student's images. Set "
            'in_channels of model.backbone, or take a teacher that was trained on such images'
        )


def _mean_std(preprocessor: ImgDataPreprocessor) -> tuple[Tensor, Tensor]:
    """Return mean and std, shape (C, 1, 1), or (1, 1, 1) where all channels have the same."""
    if not preprocessor._enable_normalize:
        return torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    return preprocessor.mean.detach().float().cpu(), preprocessor.std.detach().float().cpu()


def _swap_red_and_blue(tensor: Tensor, dim: int) -> Tensor:
    """Swap the first and the third channel, where there are at least three."""
    channels = tensor.shape[dim]
    if channels < 3:
        return tensor
    swapped = tensor.narrow(dim, 0, 3).flip(dim)
    return (
        swapped if channels == 3 else torch.cat([swapped, tensor.narrow(dim, 3, channels - 3)], dim)
    )
