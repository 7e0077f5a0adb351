from __future__ import annotations

import copy

import helpers
import pytest
import torch
from torch import Tensor, nn

from calkd_det.teachers.folding import fold_batchnorm


@pytest.mark.parametrize('depth', [18, 50])
def test_features_stay_and_no_batchnorm_is_left(depth: int) -> None:
    detector = helpers.build(helpers.detector_config(depth=depth)).eval()
    helpers.randomise_batchnorm(detector)
    image = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        expected = copy.deepcopy(detector).extract_feat(image)
        folded = fold_batchnorm(detector)
        features = folded.extract_feat(image)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    for a, b in zip(features, expected):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * b.abs().max())


class ReluBetween(nn.Module):
    """A network that mmcv would fold wrongly: the norm does not follow the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def extract_feat(self, x: Tensor) -> tuple[Tensor]:
        return (self.norm(self.conv(x).relu()),)


def test_a_network_that_folding_would_change_is_left_alone() -> None:
    network = ReluBetween().eval()
    helpers.randomise_batchnorm(network)
    assert fold_batchnorm(network) is network
    assert isinstance(network.norm, nn.BatchNorm2d)


def test_batchnorm_without_statistics_is_left_alone() -> None:
    network = ReluBetween().eval()
    network.norm = nn.BatchNorm2d(4, track_running_stats=False)
    assert fold_batchnorm(network) is network


def test_the_random_number_generator_is_not_touched() -> None:
    detector = helpers.build(helpers.detector_config()).eval()
    state = torch.get_rng_state()
    fold_batchnorm(detector)
    assert torch.equal(torch.get_rng_state(), state)
