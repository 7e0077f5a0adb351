"""Find the Runner that is training, and its data set."""

from __future__ import annotations

import sys
from typing import Any

from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop, FlexibleRunner, Runner
from torch import nn


def calling_runner() -> Runner | FlexibleRunner | None:
    """Return the Runner among the callers of this function; None without one.

    mmengine gives a model no reference to its Runner. The class names that its loops store in the
    visualizer are overwritten by those of the validation data. A Runner calls ``init_weights`` and
    every training step, under every wrapper and strategy, so it is found on the call stack.
    """
    frame = sys._getframe(1)
    while frame is not None:
        runner = frame.f_locals.get('self')
        if isinstance(runner, (Runner, FlexibleRunner)):
            return runner
        frame = frame.f_back
    return None


def unwrapped_model(runner: Runner) -> nn.Module:
    """Return the model of a Runner without the wrapper of distributed training."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def training_loader() -> Any:
    """Return the data loader that the calling Runner trains with; None where there is none."""
    # Not the property train_loop, which would build the loop in a run that only tests.
    loop = getattr(calling_runner(), '_train_loop', None)
    return loop.dataloader if isinstance(loop, BaseLoop) else None


def training_dataset() -> Any:
    """Return the data set that the calling Runner trains on, built; None where there is none."""
    return getattr(training_loader(), 'dataset', None)
