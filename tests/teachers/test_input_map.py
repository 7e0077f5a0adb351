from __future__ import annotations

import copy
from typing import Any

import helpers
import pytest
import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor
from torch import nn

from calkd_det.errors import ConfigError
from calkd_det.teachers.input_map import match_inputs

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
