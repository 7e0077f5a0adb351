"""The Runner that is training, and its data set."""

from __future__ import annotations

import sys
from typing import Any

from mmengine.runner import BaseLoop, FlexibleRunner, Runner


def calling_runner() -> Runner | FlexibleRunner | None:
    """Return the Runner that is calling, directly or not; None without one.

    mmengine hands a model nothing of its Runner, and what its loops leave with the visualizer is
    overwritten by the validation data. The Runner is therefore looked up among the callers: both
    ``init_weights`` and a training step are called by it, under every wrapper and strategy.
    """
    frame = sys._getframe(1)
    while frame is not None:
        runner = frame.f_locals.get('self')
        if isinstance(runner, (Runner, FlexibleRunner)):
            return runner
        frame = frame.f_back
    return None


def training_loader() -> Any:
    """Return the data loader that the calling Runner trains with; None where there is none."""
    # The property of the same name would build a loop that only testing leaves unbuilt.
    loop = getattr(calling_runner(), '_train_loop', None)
    return loop.dataloader if isinstance(loop, BaseLoop) else None


def training_dataset() -> Any:
    """Return the data set that the calling Runner trains on, built; None where there is none."""
    return getattr(training_loader(), 'dataset', None)
