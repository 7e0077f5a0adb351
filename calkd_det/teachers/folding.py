"""Folds BatchNorm into convolutions, and makes sure that it changed nothing."""

from __future__ import annotations

import copy
import logging

import torch
from mmcv.cnn import fuse_conv_bn
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from calkd_det.errors import TeacherError
from calkd_det.teachers.source import CONFIG_KEY

_PROBE_SIZE = 64


@torch.no_grad()
def fold_batchnorm(detector: nn.Module) -> nn.Module:
    """Folds every BatchNorm of a detector in eval mode into the convolution before it.

    mmcv pairs a convolution with the next BatchNorm of the same module, which is not how every
    network computes; so the features of a random image are compared before and after, and a
    detector that folding would change is returned as it was, with a warning in the log.

    Args:
        detector: In eval mode, on the CPU, in float32.

    Returns:
        The folded detector, or the given one. The other of the two is to be dropped.

    Raises:
        TeacherError: The detector computes no features.
    """
    norms = [module for module in detector.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return detector
    if any(norm.running_mean is None or norm.weight is None for norm in norms):
        reason = 'some have no running statistics or no weights'
    else:
        folded = fuse_conv_bn(copy.deepcopy(detector))
        if _same_features(detector, folded):
            return folded
        reason = 'it would change the features'
    print_log(
        f'The BatchNorm layers of the teacher are not folded into its convolutions: {reason}. '
        'Distillation is right all the same, only slower.',
        logger='current',
        level=logging.WARNING,
    )
    return detector


def _same_features(detector: nn.Module, folded: nn.Module) -> bool:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, _PROBE_SIZE, _PROBE_SIZE, generator=generator)
    try:
        before = detector.extract_feat(image)
    # The first forward of the teacher: parts of its config that do not go together show here.
    except Exception as error:
        raise TeacherError(
            f'{CONFIG_KEY}: the backbone and neck of this detector do not run on an image '
            f'({type(error).__name__}: {error})'
        ) from error
    after = folded.extract_feat(image)
    return all(_relative_error(a, b) < 1e-3 for a, b in zip(after, before))


def _relative_error(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).norm() / reference.norm().clamp(min=1e-12))
