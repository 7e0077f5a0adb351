"""Check the libraries that CalKD-Det needs before the rest is imported, and list versions."""

from __future__ import annotations

import importlib
import platform

# Not in install_requires: the maintained forks install the same modules under other
# distribution names, and pip would install both over each other.
_NEEDED = ('torch', 'mmengine', 'mmcv', 'mmcv.ops', 'mmdet')


def check_stack() -> None:
    """Import each library that CalKD-Det needs.

    Raises:
        ImportError: One is missing or broken. The message names it and what to install.
    """
    for module in _NEEDED:
        try:
            importlib.import_module(module)
        except (ImportError, AssertionError) as error:  # mmdet asserts on mmcv's version
            hint = (
                'mmcv was built without its operators (mmcv-lite, or MMCV_WITH_OPS=0): '
                'install the full mmcv'
                if module == 'mmcv.ops'
                else 'install torch, mmengine, mmcv (>=2.0, <2.2) and mmdet (>=3.0) first; '
                'the README lists versions that are tested together'
            )
            raise ImportError(f"CalKD-Det cannot import '{module}' ({error}): {hint}") from error
    import torch

    if not hasattr(torch, 'compiler'):
        raise ImportError(f'CalKD-Det needs torch >= 2.1, but this is {torch.__version__}')


def installed_versions() -> dict[str, str]:
    """Return the versions that a result depends on, by the name of the package, with Python's."""
    names = ('calkd_det', 'torch', 'mmdet', 'mmengine', 'mmcv', 'numpy', 'scipy')
    versions = {name: importlib.import_module(name).__version__ for name in names}
    return {**versions, 'python': platform.python_version()}
