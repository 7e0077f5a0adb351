from __future__ import annotations

import copy
from typing import Any

import helpers
import pytest
import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor
from torch import nn

from calkd_det.errors import ConfigError
from calkd_det.teachers.input_map import check_channels, match_inputs

IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
CAFFE = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False)
NONE: dict[str, Any] = {}


def preprocessor(divisor: int = 32, pad_value: int = 0, **kwargs: Any) -> DetDataPreprocessor:
    return DetDataPreprocessor(pad_size_divisor=divisor, pad_value=pad_value, **kwargs)


@pytest.mark.parametrize('student', [IMAGENET, CAFFE, NONE], ids=['imagenet', 'caffe', 'none'])
@pytest.mark.parametrize('teacher', [IMAGENET, CAFFE, NONE], ids=['imagenet', 'caffe', 'none'])
@pytest.mark.parametrize('pad_value', [0, 7])
@pytest.mark.parametrize('divisor', [1, 32, 128])
def test_equals_what_the_teachers_own_preprocessor_makes(
    student: dict, teacher: dict, pad_value: int, divisor: int
) -> None:
    ours, theirs = preprocessor(**student), preprocessor(divisor, pad_value, **teacher)
    data = helpers.batch()
    batch = ours(copy.deepcopy(data), True)
    expected = theirs(copy.deepcopy(data), True)['inputs']
    shapes = [sample.img_shape for sample in batch['data_samples']]
    result = match_inputs(ours, theirs)(batch['inputs'], shapes)
    height, width = expected.shape[-2:]
    assert result.shape[-2] >= height
    assert result.shape[-1] >= width
    assert torch.allclose(result[..., :height, :width], expected, atol=2e-4)
    assert (result[..., height:, :] == pad_value).all()
    assert (result[..., width:] == pad_value).all()


def test_the_students_batch_is_untouched_and_reused_where_nothing_differs() -> None:
    batch = torch.randn(2, 3, 64, 64)
    same = match_inputs(preprocessor(**IMAGENET), preprocessor(**IMAGENET))
    assert same(batch, [(64, 64)] * 2) is batch
    before = batch.clone()
    match_inputs(preprocessor(**IMAGENET), preprocessor(**CAFFE))(batch, [(50, 60)] * 2)
    assert torch.equal(batch, before)


def test_an_unknown_preprocessor_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'data_preprocessor of model\.teacher\.config'):
        match_inputs(preprocessor(**IMAGENET), nn.Identity())


# Images that are not of three channels

GREY = dict(mean=[118.0], std=[40.0])
RAW = dict(mean=None, std=None)


def images(channels: int) -> dict[str, list]:
    data = helpers.batch()
    data['inputs'] = [torch.cat([image, image])[:channels] for image in data['inputs']]
    return data


@pytest.mark.parametrize('student', [GREY, RAW], ids=['grey', 'raw'])
@pytest.mark.parametrize(
    'teacher', [GREY, RAW, dict(mean=[100.0], std=[2.0])], ids=['grey', 'raw', 'other']
)
@pytest.mark.parametrize('channels', [1, 4])
def test_one_and_four_channels_equal_the_teachers_own_preprocessor(
    channels: int, student: dict, teacher: dict
) -> None:
    ours, theirs = preprocessor(**student), preprocessor(64, 5, **teacher)
    batch = ours(images(channels), True)
    expected = theirs(images(channels), True)['inputs']
    shapes = [sample.img_shape for sample in batch['data_samples']]
    result = match_inputs(ours, theirs)(batch['inputs'], shapes)
    assert result.shape[1] == channels
    height, width = expected.shape[-2:]
    assert torch.allclose(result[..., :height, :width], expected, atol=2e-4)


@pytest.mark.parametrize('student', [dict(GREY, bgr_to_rgb=True), IMAGENET], ids=['grey', 'colour'])
def test_one_mean_for_three_channels_is_flipped_as_mmengine_does(student: dict) -> None:
    ours, theirs = preprocessor(**student), preprocessor(**GREY)
    batch = ours(images(3), True)
    expected = theirs(images(3), True)['inputs']
    shapes = [sample.img_shape for sample in batch['data_samples']]
    assert torch.allclose(match_inputs(ours, theirs)(batch['inputs'], shapes), expected, atol=2e-4)


class FourChannels(DetDataPreprocessor):
    """A user's own, which mmengine's cannot be: a mean of four values, the fourth not swapped."""

    def __init__(self, mean: list[float], std: list[float], bgr_to_rgb: bool = False) -> None:
        super().__init__(pad_size_divisor=32)
        self._enable_normalize, self._channel_conversion = True, bgr_to_rgb
        self.mean = torch.tensor(mean).view(-1, 1, 1)
        self.std = torch.tensor(std).view(-1, 1, 1)

    def normalised(self, image: torch.Tensor) -> torch.Tensor:
        image = image[[2, 1, 0, 3]] if self._channel_conversion else image
        return (image.float() - self.mean) / self.std


def test_four_means_are_used_channel_by_channel() -> None:
    ours = FourChannels([1.0, 2, 3, 4], [5.0, 6, 7, 8], bgr_to_rgb=True)
    theirs = FourChannels([9.0, 8, 7, 6], [1.0, 2, 3, 4])
    image = torch.rand(4, 32, 32) * 255
    result = match_inputs(ours, theirs)(ours.normalised(image)[None], [(32, 32)])
    assert torch.allclose(result[0], theirs.normalised(image), atol=2e-4)
    with pytest.raises(ConfigError, match=r'mean has 4 channels, .* has 3'):
        match_inputs(ours, preprocessor(**IMAGENET))


@pytest.mark.parametrize(('student', 'teacher'), [(4, 3), (3, 4), (1, 3), (3, 1)])
def test_a_teacher_of_other_channels_is_refused(student: int, teacher: int) -> None:
    detectors = [nn.Module(), nn.Module()]
    for detector, channels in zip(detectors, (student, teacher)):
        detector.backbone = nn.Conv2d(channels, 1, 1)
    message = (
        rf'model\.backbone takes images of {student} channels, the backbone of '
        rf'model\.teacher\.config images of {teacher}: .* Set in_channels of model\.backbone'
    )
    with pytest.raises(ConfigError, match=message):
        check_channels(*detectors)
    check_channels(detectors[0], detectors[0])
