"""The teacher is nobody's submodule: where it is, in which dtype, and who shares it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import helpers
import pytest
import torch
from mmdet.models.detectors import SoftTeacher
from mmengine.config import ConfigDict
from mmengine.model import ExponentialMovingAverage
from torch import Tensor, nn

from calkd_det.detectors import CalKDFasterRCNN
from calkd_det.teachers.sharing import share_detector

Teacher = tuple[nn.Module, Path]


@pytest.fixture
def distilled(teacher_config: ConfigDict, teacher: Teacher) -> CalKDFasterRCNN:
    return build(helpers.distilled_config(teacher_config, teacher[1]))


def build(cfg: ConfigDict) -> CalKDFasterRCNN:
    detector = helpers.build(cfg)
    detector.init_weights()
    return detector.train()


def weights(detector: CalKDFasterRCNN) -> dict[str, Tensor]:
    return copy.deepcopy(detector.teacher.network.state_dict())


def assert_unchanged(detector: CalKDFasterRCNN, before: dict[str, Tensor]) -> None:
    after = detector.teacher.network.state_dict()
    assert after.keys() == before.keys()
    for key, value in before.items():
        assert after[key].dtype == value.dtype
        assert after[key].device == value.device
        assert torch.equal(after[key], value), key


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    'half': lambda module: module.half(),
    'bfloat16': lambda module: module.bfloat16(),
    'double': lambda module: module.double(),
    'to another device': lambda module: module.to('meta'),
    'to_empty': lambda module: module.to_empty(device='cpu'),
    'share_memory': lambda module: module.share_memory(),
    'train': lambda module: module.train(),
    'requires_grad_': lambda module: module.requires_grad_(True),
}


@pytest.mark.parametrize('change', CHANGES)
@pytest.mark.parametrize('whose', ['its own', "a copy's", "a parent's"])
def test_what_is_done_to_a_student_does_not_reach_the_teacher(
    change: str, whose: str, distilled: CalKDFasterRCNN
) -> None:
    before = weights(distilled)
    module: nn.Module = copy.deepcopy(distilled) if whose == "a copy's" else distilled
    CHANGES[change](nn.Sequential(module) if whose == "a parent's" else module)
    assert_unchanged(distilled, before)
    network = distilled.teacher.network
    assert not any(module.training for module in network.modules())
    assert not any(p.requires_grad for p in network.parameters())


def test_an_average_on_another_device_leaves_the_teacher(distilled: CalKDFasterRCNN) -> None:
    before = weights(distilled)
    ExponentialMovingAverage(distilled, device=torch.device('meta'))
    assert_unchanged(distilled, before)
    assert helpers.loss(distilled, helpers.batch())['loss_kd'].isfinite()


def test_goes_to_the_device_of_the_images_when_it_is_called(distilled: CalKDFasterRCNN) -> None:
    network = distilled.teacher.network
    images = torch.zeros(1, 3, 64, 64, device='meta')
    feats = distilled.teacher.extract_feat(images, [(64, 64)])
    assert {feat.device.type for feat in feats} == {'meta'}
    assert {tensor.device.type for tensor in network.state_dict().values()} == {'meta'}


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_casts_the_images_to_its_own_dtype(dtype: torch.dtype, distilled: CalKDFasterRCNN) -> None:
    images = torch.rand(2, 3, 64, 96).to(dtype)
    shapes = [(64, 96)] * 2
    feats = distilled.teacher.extract_feat(images, shapes)
    expected = distilled.teacher.extract_feat(images.float(), shapes)
    for feat, other in zip(feats, expected):
        assert feat.dtype == torch.float32
        assert torch.equal(feat, other)


def test_the_features_come_before_the_students(distilled: CalKDFasterRCNN) -> None:
    order: list[str] = []
    distilled.backbone.register_forward_pre_hook(lambda m, a: order.append('student'))
    frozen = distilled.teacher.network.detector
    frozen.backbone.register_forward_hook(lambda m, a, o: order.append('teacher'))
    helpers.loss(distilled, helpers.batch())
    assert order == ['teacher', 'student']


# Shared by those who hold the same teacher


def test_the_two_detectors_of_a_semi_supervised_one_share_a_network(
    teacher_config: ConfigDict, teacher: Teacher
) -> None:
    cfg = helpers.distilled_config(teacher_config, teacher[1])
    semi = SoftTeacher(
        detector=cfg,
        semi_train_cfg=dict(freeze_teacher=True),
        data_preprocessor=dict(
            type='MultiBranchDataPreprocessor', data_preprocessor=cfg.data_preprocessor
        ),
    )
    semi.init_weights()
    networks = [part.teacher.network for part in (semi.student, semi.teacher)]
    assert networks[0] is not networks[1]
    assert networks[0].detector is networks[1].detector
    # The one is moved, the other notices.
    semi.student.teacher.extract_feat(torch.zeros(1, 3, 64, 64, device='meta'), [(64, 64)])
    assert not networks[1].is_on(torch.device('cpu'))
    assert not networks[1].is_on(torch.device('meta'))


def test_other_weights_or_another_config_are_not_shared(
    teacher_config: ConfigDict, teacher: Teacher, tmp_path: Path
) -> None:
    first = build(helpers.distilled_config(teacher_config, teacher[1]))
    helpers.save_teacher(tmp_path / 'other.pth', teacher_config, seed=5)
    other = build(helpers.distilled_config(teacher_config, tmp_path / 'other.pth'))
    assert other.teacher.network.detector is not first.teacher.network.detector


def test_a_network_that_somebody_changed_is_not_shared(
    teacher_config: ConfigDict, teacher: Teacher
) -> None:
    cfg = helpers.distilled_config(teacher_config, teacher[1])
    first, second = build(cfg), build(cfg)
    assert second.teacher.network.detector is first.teacher.network.detector
    first.teacher.network.detector.roi_head.bbox_head.fc_cls.bias[0] = torch.nan
    third = build(cfg)
    assert third.teacher.network.detector is not first.teacher.network.detector
    assert all(value.isfinite().all() for value in third.teacher.network.state_dict().values())


def test_a_network_that_nobody_holds_is_freed() -> None:
    layer = nn.Linear(2, 2)
    assert share_detector(layer, 'a key of its own') is layer
    twin = copy.deepcopy(layer)
    assert share_detector(twin, 'a key of its own') is layer
    del layer
    assert share_detector(twin, 'a key of its own') is twin


def test_a_network_on_the_meta_device_is_not_shared(
    teacher_config: ConfigDict, teacher: Teacher
) -> None:
    cfg = helpers.distilled_config(teacher_config, teacher[1])
    first = build(cfg)
    first.teacher.network.detector.to('meta')
    second = build(cfg)
    assert not any(tensor.is_meta for tensor in second.teacher.network.state_dict().values())
