"""Keep a function out of ``torch.compile`` without importing the compiler."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


def outside_compiler(function: Callable) -> Callable:
    """Return a function that runs as written also inside ``torch.compile``.

    ``torch.compiler.disable`` does the same, but imports ``torch._dynamo`` at once, which takes
    longer than the import of this package. Here it is called on the first call of the function. By
    then a training run has imported ``torch._dynamo``, because torch's optimizers do.
    """
    disabled: list[Callable] = []

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*args, **kwargs)

    return run
