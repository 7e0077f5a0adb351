"""Fold BatchNorm into convolutions where that does not change the features."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Sequence

import torch
from mmcv.cnn import fuse_conv_bn
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from calkd_det.teachers.channels import input_channels
from calkd_det.teachers.source import CONFIG_KEY

# Deformable convolutions and NAS-FPN do not run on smaller images.
_PROBE_SIZE = 128
_MAX_RELATIVE_ERROR = 1e-3


@torch.no_grad()
def fold_batchnorm(detector: nn.Module) -> nn.Module:
    """Fold every BatchNorm of a detector in eval mode into the convolution before it.

    mmcv pairs a convolution with the next BatchNorm of the same module, which is wrong for some
    networks. So the features of a random image are compared before and after. Folding only saves
    time. Where it fails, where the features differ, or where the detector does not run on that
    image, the detector is returned unchanged, with a warning in the log.

    Args:
        detector: A detector in eval mode, on the CPU, in float32. It is not changed.

    Returns:
        The folded copy, or the given detector. The other one is not needed any more.
    """
    norms = [module for module in detector.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return detector
    try:
        if any(norm.running_mean is None or norm.weight is None for norm in norms):
            raise _NotFoldable('some have no running statistics or no weights')
        folded = _folded_copy(detector)
        _check_features(detector, folded)
    except _NotFoldable as reason:
        print_log(
            f'The BatchNorm layers of the teacher are not folded into its convolutions: {reason}. '
            'Distillation is right all the same, only slower.',
            logger='current',
            level=logging.WARNING,
        )
        return detector
    return folded


class _NotFoldable(Exception):
    """Reason why a detector cannot be folded."""


def _folded_copy(detector: nn.Module) -> nn.Module:
    try:
        folded = copy.deepcopy(detector)
        _unshare_convolutions(folded)
        return fuse_conv_bn(folded)
    # mmcv reads attributes that some kinds of convolution do not have.
    except Exception as error:
        raise _NotFoldable(f'mmcv cannot fold them ({type(error).__name__}: {error})') from error


def _unshare_convolutions(network: nn.Module) -> None:
    """Copy each convolution that is used in several places, where a BatchNorm follows it.

    mmcv changes a convolution in place. One that several BatchNorms share would be scaled by all
    of them.
    """
    places = Counter(id(child) for parent in network.modules() for child in _children(parent))
    for parent in network.modules():
        convolution = None
        for name, child in parent.named_children():
            if isinstance(child, nn.Conv2d):
                convolution = name
            elif isinstance(child, _BatchNorm) and convolution is not None:
                shared = parent._modules[convolution]
                if places[id(shared)] > 1:
                    parent._modules[convolution] = copy.deepcopy(shared)
                convolution = None


def _children(parent: nn.Module) -> list[nn.Module]:
    return [child for child in parent._modules.values() if child is not None]


def _check_features(detector: nn.Module, folded: nn.Module) -> None:
    channels = input_channels(detector) or 3
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, channels, _PROBE_SIZE, _PROBE_SIZE, generator=generator)
    try:
        before = _tensors(detector.extract_feat(image))
        after = _tensors(folded.extract_feat(image))
    # The teacher's first forward: parts of its config that do not fit each other raise here.
    except Exception as error:
        reason = f'{type(error).__name__}: {str(error).strip()}'
        raise _NotFoldable(
            f'its backbone and neck do not run on a random image of {channels} x {_PROBE_SIZE} x '
            f'{_PROBE_SIZE} ({reason}). If they do not run on the images of the training either, '
            f'parts of {CONFIG_KEY} do not go together'
        ) from error
    errors = [_relative_error(a, b) for a, b in zip(after, before)]
    # "not <" instead of ">=", because every comparison with NaN is false.
    if not all(error < _MAX_RELATIVE_ERROR for error in errors):
        raise _NotFoldable('it would change the features')


def _tensors(features: Tensor | Sequence) -> list[Tensor]:
    if isinstance(features, Tensor):
        return [features]
    return [tensor for part in features for tensor in _tensors(part)]


def _relative_error(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).norm() / reference.norm().clamp(min=1e-12))
