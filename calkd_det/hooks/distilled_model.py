"""The distilled detector of a run, for hooks."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import Runner

from calkd_det.detectors import DistillationMixin
from calkd_det.detectors.runner_data import unwrapped_model
from calkd_det.errors import ConfigError


def distilled_model(runner: Runner, hook: Hook) -> DistillationMixin:
    """Return the detector that a Runner trains.

    Raises:
        ConfigError: It is not distilled. The message names the hook that needs it.
    """
    model = unwrapped_model(runner)
    if not isinstance(model, DistillationMixin):
        raise ConfigError(
            f'custom_hooks: {type(hook).__name__} needs a distilled detector, but model.type is '
            f'{type(model).__name__}: remove the hook, or use a CalKD detector'
        )
    return model
