"""Each head of mmdet is read by a tap, or refused with a reason."""

from __future__ import annotations

import inspect

import pytest
from mmdet.registry import MODELS
from mmengine.hub import get_config
from mmengine.model import BaseModule

from calkd_det.commands.zoo.student import build_without_weights
from calkd_det.errors import ConfigError
from calkd_det.losses import PKDLoss
from calkd_det.taps import TAPS, find_taps
from calkd_det.taps.refused import REFUSED

# Base classes, which no config builds; a part of Sparse R-CNN; and a head whose detector needs
# another package, and whose message says how it is registered.
NOT_ALONE = {
    'AnchorFreeHead',
    'AnchorHead',
    'GuidedAnchorHead',
    'EmbeddingRPNHead',
    'BoxInstBboxHead',
}
HEADS: list[type[BaseModule]] = [
    cls
    for cls in MODELS.module_dict.values()
    if inspect.isclass(cls)
    and cls.__module__.rpartition('.')[0] in ('mmdet.models.dense_heads', 'mmdet.models.roi_heads')
    and cls.__name__.endswith('Head')
    and not cls.__name__.endswith('MaskHead')
    and cls.__name__ not in NOT_ALONE
]


def test_the_heads_are_found() -> None:
    assert len(HEADS) > 50


@pytest.mark.parametrize('head', HEADS, ids=lambda head: head.__name__)
def test_each_head_is_read_or_refused_with_a_reason(head: type[BaseModule]) -> None:
    is_read = any(head in tap.known_heads for tap in TAPS)
    is_refused = any(cls.__name__ in REFUSED for cls in head.__mro__)
    assert is_read != is_refused


def test_features_of_several_branches_are_refused_when_the_student_is_built() -> None:
    model = get_config('mmdet::tridentnet/tridentnet_r50-caffe_1x_coco.py').model
    find_taps(build_without_weights(model), frozenset(), 'model')
    model.update(
        type='CalKDTridentFasterRCNN',
        teacher=dict(config=dict(model=dict(type='FasterRCNN')), checkpoint='none.pth'),
        distillation=dict(type=PKDLoss),
    )
    words = 'feature maps of a CalKDTridentFasterRCNN with TridentResNet: in training its backbone'
    with pytest.raises(ConfigError, match=words):
        build_without_weights(model)
