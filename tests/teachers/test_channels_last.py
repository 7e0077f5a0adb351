"""The teacher in channels_last memory format: the same logits, up to rounding."""

from __future__ import annotations

from pathlib import Path

import helpers
import pytest
import torch
from mmengine.config import ConfigDict
from torch import nn

from calkd_det.errors import ConfigError

Teacher = tuple[nn.Module, Path]


@pytest.mark.parametrize('precision', [None, 'float32'])
def test_the_loss_is_the_same(
    teacher_config: ConfigDict, teacher: Teacher, precision: str | None
) -> None:
    losses = []
    for channels_last in (False, True):
        options = dict(channels_last=channels_last, precision=precision)
        cfg = helpers.distilled_config(teacher_config, teacher[1], teacher=options)
        detector = helpers.build(cfg)
        detector.init_weights()
        weight = detector.teacher.network.detector.backbone.layer1[0].conv1.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) is channels_last
        torch.manual_seed(0)
        losses.append(helpers.loss(detector.train(), helpers.batch()))
    assert losses[0].keys() == losses[1].keys()
    for name, value in losses[0].items():
        torch.testing.assert_close(losses[1][name], value, rtol=1e-5, atol=1e-7)


def test_it_is_true_or_false(teacher_config: ConfigDict, tmp_path: Path) -> None:
    cfg = helpers.distilled_config(
        teacher_config, tmp_path / 'x.pth', teacher=dict(channels_last='yes')
    )
    with pytest.raises(ConfigError, match=r"channels_last must be True or False, but is 'yes'"):
        helpers.build(cfg)
