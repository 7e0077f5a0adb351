"""Check the installed versions and the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from mmcv.ops import get_compiling_cuda_version

from calkd_det.commands.doctor.finding import Finding

# Tested together: those of make env, by its STACK, which a test compares.
CURRENT = {
    'python': '3.11',
    'torch': '2.13.0',
    'mmengine': '0.10.7',
    'mmcv': '2.1.0',
    'mmdet': '3.3.0',
    'numpy': '2.4.6',
}
CLASSIC = {**CURRENT, 'torch': '2.1.2', 'numpy': '1.26.4'}
ONEDL = {**CURRENT, 'mmengine': '0.10.12', 'mmcv': '2.3.6', 'mmdet': '3.5.1'}


def check_versions(installed: Mapping[str, str]) -> Iterator[Finding]:
    """Compare versions with those tested together, without build tags such as ``+cpu``."""
    names = ', '.join(f'{name} {version}' for name, version in installed.items())
    yield Finding('ok', 'versions', names)
    other = min((_untested(installed, stack) for stack in (CURRENT, CLASSIC, ONEDL)), key=len)
    if other:
        yield Finding('warning', 'versions', f'not those tested together: {", ".join(other)}')
    else:
        yield Finding('ok', 'versions', 'these were tested together')


def _untested(installed: Mapping[str, str], stack: Mapping[str, str]) -> list[str]:
    return [
        f'{name} {version} (tested: {stack[name]})'
        for name, version in installed.items()
        if name in stack and not f'{version.split("+")[0]}.'.startswith(f'{stack[name]}.')
    ]


def check_device(device: torch.device) -> Iterator[Finding]:
    """Report the device, and whether mmcv's operators can run on it."""
    cuda = get_compiling_cuda_version()
    built_for = 'the CPU alone' if cuda == 'not available' else f'CUDA {cuda}'
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else str(device)
    text = f"{name}; mmcv's operators are there, built for {built_for}"
    if device.type == 'cuda' and cuda == 'not available':
        yield Finding('error', 'device', f'{text}: build mmcv anew where it finds your CUDA')
    else:
        yield Finding('ok', 'device', text)
