"""CalKD-Det: distil an MMDetection detector from a calibrated teacher.

Importing the package registers its modules in mmdet's own registries, which is what
``custom_imports = dict(imports=['calkd_det'])`` in a config does.
"""

from calkd_det.stack import check_stack

check_stack()

from calkd_det import calibration, detectors, evaluation, hooks, losses, taps  # noqa: E402
from calkd_det.config import config_path  # noqa: E402
from calkd_det.safe_loading import register_safe_globals  # noqa: E402
from calkd_det.version import __version__  # noqa: E402

register_safe_globals()

__all__ = [
    '__version__',
    'calibration',
    'config_path',
    'detectors',
    'evaluation',
    'hooks',
    'losses',
    'taps',
]
