"""Check the libraries that CalKD-Det needs before the rest is imported, and list versions."""

from __future__ import annotations

import importlib
import platform
from importlib.metadata import PackageNotFoundError, version

_NO_OPERATORS = (
    'mmcv has no operators for this torch (it is mmcv-lite, was built with MMCV_WITH_OPS=0, or for '
    'another torch). Remove it, pip uninstall mmcv mmcv-lite onedl-mmcv, then pip install '
    '--no-cache-dir '
)
_NOT_WHOLE = 'mmdet is there, but not all that it imports: pip install the package that has it'
# Not in install_requires: the maintained forks install the same modules under other
# distribution names, and pip would install both over each other.
_INSTALL = {
    'torch': "pip install 'torch>=2.1'",
    'mmengine': 'pip install mmengine==0.10.7',
    'mmcv': 'pip install mmcv==2.1.0, which compiles for some minutes',
    'mmcv.ops': f'{_NO_OPERATORS}mmcv==2.1.0',
    'mmdet': 'pip install mmdet==3.3.0 mmcv==2.1.0; mmdet 3.3.0 takes mmcv below 2.2.0',
    'mmdet.datasets': _NOT_WHOLE,
    'mmdet.models': _NOT_WHOLE,
}
_FORKS = ('onedl-mmdetection', 'onedl-mmcv', 'onedl-mmengine')
_INSTALL_FORKS = {
    **_INSTALL,
    'mmengine': 'pip install onedl-mmengine==0.10.12',
    'mmcv': 'pip install onedl-mmcv==2.3.6, which compiles for some minutes',
    'mmcv.ops': f'{_NO_OPERATORS}onedl-mmcv==2.3.6',
    'mmdet': 'pip install onedl-mmdetection==3.5.1 onedl-mmcv==2.3.6',
    'mmdet.datasets': f'{_NOT_WHOLE}; the one of imgaug is imaug',
}


def check_stack() -> None:
    """Import each library that CalKD-Det needs.

    Raises:
        ImportError: One is missing, broken or of a version that does not work. The message names
            it and what to install.
    """
    _check_numpy()
    forked = any(map(_is_installed, _FORKS))
    for module, install in (_INSTALL_FORKS if forked else _INSTALL).items():
        try:
            importlib.import_module(module)
        except (ImportError, AssertionError, OSError) as error:  # mmdet asserts mmcv's version
            reason = f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'
            raise ImportError(
                f"CalKD-Det cannot import '{module}' ({reason}). {install}. "
                'docs/install.md lists versions that were tested together.'
            ) from None
    import torch

    if not hasattr(torch, 'compiler'):
        raise ImportError(
            f'CalKD-Det needs torch >= 2.1, but this is {torch.__version__}. {_INSTALL["torch"]}, '
            'and an mmcv that is built for it.'
        )


def _is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def _check_numpy() -> None:
    """Check that torch can use the numpy that is installed, before it prints a screen of its own.

    Raises:
        ImportError: torch is older than 2.3 and numpy is of version 2 or later.
    """
    try:
        torch, numpy = version('torch'), version('numpy')
    except PackageNotFoundError:
        return  # the import of the missing one says so
    if _major_minor(torch) < (2, 3) and _major_minor(numpy) >= (2, 0):
        raise ImportError(
            f'CalKD-Det cannot run: torch {torch} is built for numpy 1, but numpy {numpy} is '
            "installed. pip install 'numpy<2' 'opencv-python-headless<4.12'"
        )


def _major_minor(text: str) -> tuple[int, int]:
    major, minor = text.split('.')[:2]
    return int(major), int(minor)


def installed_versions() -> dict[str, str]:
    """Return the versions that a result depends on, by the name of the package, with Python's."""
    names = ('calkd_det', 'torch', 'mmdet', 'mmengine', 'mmcv', 'numpy', 'scipy')
    versions = {name: importlib.import_module(name).__version__ for name in names}
    return {**versions, 'python': platform.python_version()}
