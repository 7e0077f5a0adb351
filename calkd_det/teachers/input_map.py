"""Turns a batch that was normalised for the student into one normalised for the teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import ImgDataPreprocessor
from torch import Tensor, nn

from calkd_det.errors import ConfigError


class InputMap(nn.Module):
    """Undoes the student's channel order, mean and std, applies the teacher's, and pads.

    Args:
        student: The student's data preprocessor.
        teacher: The teacher's.
    """

    def __init__(self, student: ImgDataPreprocessor, teacher: ImgDataPreprocessor) -> None:
        super().__init__()
        mean_s, std_s = _mean_std(student)
        mean_t, std_t = _mean_std(teacher)
        self.flip = student._channel_conversion != teacher._channel_conversion
        if self.flip:
            mean_s, std_s = mean_s.flip(0), std_s.flip(0)
        self.register_buffer('scale', std_s / std_t)
        self.register_buffer('shift', (mean_s - mean_t) / std_t)
        self.pad_value = float(teacher.pad_value)
        self.divisor = teacher.pad_size_divisor
        self.renormalise = bool(
            self.flip
            or not torch.equal(mean_s, mean_t)
            or not torch.equal(std_s, std_t)
            or student.pad_value != teacher.pad_value
        )

    def forward(self, images: Tensor, image_shapes: Sequence[tuple[int, int]]) -> Tensor:
        """Maps a batch.

        Args:
            images: Normalised for the student, shape (B, 3, H, W).
            image_shapes: Height and width in pixels of each image, without its padding.

        Returns:
            Normalised for the teacher, shape (B, 3, H', W') with H' >= H, W' >= W. The very
            same tensor where nothing differs.
        """
        height, width = images.shape[-2:]
        right = math.ceil(width / self.divisor) * self.divisor - width
        bottom = math.ceil(height / self.divisor) * self.divisor - height
        if self.renormalise:
            images = images.flip(1) if self.flip else images
            images = images * self.scale + self.shift
            for image, (h, w) in zip(images, image_shapes):
                image[:, h:, :] = self.pad_value
                image[:, :, w:] = self.pad_value
        if right or bottom:
            images = F.pad(images, (0, right, 0, bottom), value=self.pad_value)
        return images


def match_inputs(student: nn.Module, teacher: nn.Module) -> InputMap:
    """Builds the map between two data preprocessors.

    Raises:
        ConfigError: One of them does not normalise images as mmdet's do.
    """
    for preprocessor, key in (
        (student, 'model.data_preprocessor'),
        (teacher, 'data_preprocessor of model.teacher.config'),
    ):
        if not isinstance(preprocessor, ImgDataPreprocessor):
            raise ConfigError(
                f'{key} is a {type(preprocessor).__name__}: CalKD-Det compares the normalisation '
                'of teacher and student, and must be told it by a DetDataPreprocessor'
            )
    return InputMap(student, teacher)


def _mean_std(preprocessor: ImgDataPreprocessor) -> tuple[Tensor, Tensor]:
    if not preprocessor._enable_normalize:
        return torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    mean = preprocessor.mean.detach().float().cpu().expand(3, 1, 1)
    std = preprocessor.std.detach().float().cpu().expand(3, 1, 1)
    return mean, std
