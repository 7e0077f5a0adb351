from __future__ import annotations

import copy
from collections.abc import Callable

import helpers
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.hub import get_config
from torch import Tensor, nn

from calkd_det.teachers import folding
from calkd_det.teachers.channels import input_channels
from calkd_det.teachers.folding import fold_batchnorm


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    messages: list[str] = []
    monkeypatch.setattr(folding, 'print_log', lambda message, **kwargs: messages.append(message))
    return messages


def assert_folded(detector: nn.Module, image: Tensor) -> None:
    helpers.randomise_batchnorm(detector)
    with torch.no_grad():
        expected = copy.deepcopy(detector).extract_feat(image)
        folded = fold_batchnorm(detector)
        features = folded.extract_feat(image)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    for a, b in zip(features, expected):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * b.abs().max())


@pytest.mark.parametrize('depth', [18, 50])
def test_features_stay_and_no_batchnorm_is_left(depth: int) -> None:
    detector = helpers.build(helpers.detector_config(depth=depth)).eval()
    assert_folded(detector, torch.randn(2, 3, 96, 64))


@pytest.mark.parametrize('channels', [1, 4])
def test_detectors_with_other_channels_are_folded(channels: int, warned: list[str]) -> None:
    cfg = helpers.detector_config(base_channels=4)
    cfg.backbone.in_channels = channels
    assert_folded(helpers.build(cfg).eval(), torch.randn(2, channels, 96, 64))
    assert not warned


@pytest.mark.parametrize('op', ['DCN', 'DCNv2'])
def test_deformable_convolutions_are_probed_at_a_size_they_run_at(
    op: str, warned: list[str]
) -> None:
    cfg = helpers.detector_config(base_channels=4, depth=50)
    cfg.backbone.update(
        dcn=dict(type=op, deform_groups=1), stage_with_dcn=(False, True, True, True)
    )
    detector = helpers.build(cfg).eval()
    image = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        expected = detector.extract_feat(image)
        folded = fold_batchnorm(detector)
        for a, b in zip(folded.extract_feat(image), expected):
            assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * b.abs().max())
    assert folded is not detector
    assert not warned


class Network(nn.Module):
    """Convolution, norm, and what stands between them."""

    def __init__(self, between: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.between = between

    def extract_feat(self, x: Tensor) -> tuple[Tensor]:
        return (self.norm(self.between(self.conv(x))),)


def test_a_network_that_folding_would_change_is_left_alone(warned: list[str]) -> None:
    network = Network(torch.relu).eval()
    helpers.randomise_batchnorm(network)
    assert fold_batchnorm(network) is network
    assert isinstance(network.norm, nn.BatchNorm2d)
    assert 'it would change the features' in warned[0]


def test_batchnorm_without_statistics_is_left_alone(warned: list[str]) -> None:
    network = Network().eval()
    network.norm = nn.BatchNorm2d(4, track_running_stats=False)
    assert fold_batchnorm(network) is network
    assert 'no running statistics' in warned[0]


def test_a_network_that_does_not_run_on_the_probe_is_left_alone(warned: list[str]) -> None:
    def needs_large_maps(x: Tensor) -> Tensor:
        if x.shape[-1] < 200:
            raise RuntimeError('input image is smaller than kernel')
        return x

    network = Network(needs_large_maps).eval()
    assert fold_batchnorm(network) is network
    assert '3 x 128 x 128 (RuntimeError: input image is smaller than kernel)' in warned[0]


def test_a_network_that_mmcv_cannot_fold_is_left_alone(warned: list[str]) -> None:
    """The neck of NAS-FCOS has grouped and deformable convolutions that mmcv cannot fold."""
    cfg = get_config('mmdet::nas_fcos/nas-fcos_r50-caffe_fpn_nashead-gn-head_4xb4-1x_coco.py').model
    cfg.backbone.update(base_channels=4, init_cfg=None)
    cfg.neck.update(in_channels=[16, 32, 64, 128])
    detector = helpers.build(cfg).eval()
    assert fold_batchnorm(detector) is detector
    assert 'mmcv cannot fold them (' in warned[0]
    with torch.no_grad():
        detector.extract_feat(torch.randn(1, 3, 64, 64))


class NotFinite(Network):
    def extract_feat(self, x: Tensor) -> tuple[Tensor]:
        return (super().extract_feat(x)[0] * float('nan'),)


def test_features_that_are_not_finite_prove_nothing(warned: list[str]) -> None:
    network = NotFinite().eval()
    assert fold_batchnorm(network) is network
    assert 'it would change the features' in warned[0]


class SharedConvolution(nn.Module):
    """One convolution for all levels, a BatchNorm for each, and a use without a norm."""

    def __init__(self) -> None:
        super().__init__()
        conv = nn.Conv2d(3, 4, 3)
        self.plain = nn.Sequential(conv)
        self.levels = nn.ModuleList(nn.Sequential(conv, nn.BatchNorm2d(4)) for _ in range(3))

    def extract_feat(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.plain(x), *(level(x) for level in self.levels))


def test_each_batchnorm_of_a_shared_convolution_is_folded_into_a_copy(warned: list[str]) -> None:
    network = SharedConvolution().eval()
    assert_folded(network, torch.randn(1, 3, 32, 32))
    assert not warned
    assert network.levels[0][0] is network.plain[0]  # the given one is not changed


def test_the_random_number_generator_is_not_touched() -> None:
    detector = helpers.build(helpers.detector_config()).eval()
    state = torch.get_rng_state()
    fold_batchnorm(detector)
    assert torch.equal(torch.get_rng_state(), state)


BACKBONES = {
    'ResNet': dict(depth=18, in_channels=5),
    'ResNetV1d': dict(depth=50, in_channels=5),
    'MobileNetV2': dict(),
    'CSPDarknet': dict(deepen_factor=0.33, widen_factor=0.125),
    'CSPNeXt': dict(deepen_factor=0.33, widen_factor=0.125),
    'Darknet': dict(),
    'SwinTransformer': dict(embed_dims=24, in_channels=1),
    'PyramidVisionTransformerV2': dict(embed_dims=32, in_channels=4),
    'RegNet': dict(arch='regnetx_400mf', in_channels=5),
    'HourglassNet': dict(num_stacks=1),
    'EfficientNet': dict(arch='b0'),
}


@pytest.mark.parametrize('name', BACKBONES)
def test_the_channels_of_a_backbone_are_found(name: str) -> None:
    detector = nn.Module()
    detector.backbone = MODELS.build(dict(type=name, **BACKBONES[name]))
    assert input_channels(detector) == BACKBONES[name].get('in_channels', 3)


def test_a_detector_without_a_backbone_says_nothing_of_its_channels() -> None:
    assert input_channels(nn.Conv2d(7, 1, 1)) is None
