"""Losses of whole maps in few passes over a GPU's memory."""

from __future__ import annotations

import logging
from functools import cache
from importlib.util import find_spec

import torch
from mmengine.logging import print_log
from torch import Tensor

# Types of devices that have the kernels.
DEVICES = ['cuda']
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def can_fuse(*tensors: Tensor) -> bool:
    """Return whether the kernels of this folder take these tensors.

    They do where all are on one CUDA device and float32 or shorter, what belongs to one index of
    the first dimension lies in one piece, and Triton works. Elsewhere the losses compute the same
    by torch's operators.
    """
    return (
        all(x.device.type in DEVICES and x.dtype in FLOATS for x in tensors)
        and all(x[:1].is_contiguous() for x in tensors)
        and triton_works(tensors[0].device)
    )


@cache
def triton_works(device: torch.device) -> bool:
    """Return whether all kernels run on a device; where they do not, say so in the log once.

    torch for CUDA brings Triton along on Linux. Triton also needs a C compiler.
    """
    if find_spec('triton') is None:
        return False
    maps = torch.zeros(1, 1, 2, 2, device=device)
    rows = maps.view(2, 2)
    options = dict(tau=1.0, slope_scale=1.0, scale_by_difference=True)
    try:
        from calkd_det.losses.kernels.maps import pkd_distance, softmax_divergence
        from calkd_det.losses.kernels.scores import sigmoid_divergence

        pkd_distance(maps, maps, None, torch.empty_like(maps))
        softmax_divergence(maps, maps, None, torch.empty_like(maps), 1.0)
        sigmoid_divergence(rows, rows, torch.empty_like(rows), **options)
    except Exception as error:
        print_log(
            'Triton cannot compile here, so the losses of maps take more time; their values are '
            f'the same. {type(error).__name__}: {error}',
            logger='current',
            level=logging.WARNING,
        )
        return False
    return True
