"""Time several steps in turn, in one process, so that all meet the same disturbances.

On a CPU the clock is the time that the processor spent on this process, in all of its threads, so
that what else the machine does counts little. On a GPU it is the time that passes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from tqdm import tqdm


def alternate(
    steps: Mapping[str, Callable[[], float | None]],
    *,
    rounds: int,
    warm_up: int,
    device: torch.device,
    title: str = 'rounds',
) -> tuple[dict[str, list[float]], dict[str, float | None]]:
    """Run every step once a round, each round beginning with another.

    Args:
        steps: By name.
        rounds: How many are timed.
        warm_up: How many go before, untimed.
        device: Waited for before the clock is read.
        title: What the progress calls the measurement.

    Returns:
        Seconds of each round by name, and what the last call of each step gave.
    """
    clock, _ = clock_of(device)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    losses: dict[str, float | None] = {}
    names = list(steps)
    for index in tqdm(range(-warm_up, rounds), desc=title, unit='round'):
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            torch.manual_seed(0)  # the same RoIs for all
            _wait(device)
            start = clock()
            losses[name] = steps[name]()
            _wait(device)
            if index >= 0:
                seconds[name].append(clock() - start)
    return seconds, losses


def clock_of(device: torch.device) -> tuple[Callable[[], float], str]:
    """Return the clock that steps on a device are timed by, and what it measures, in words."""
    if device.type == 'cpu':
        return time.process_time, 'time of the processor'
    return time.perf_counter, 'time that passed'


def spread(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile; all the same for one value."""
    if len(values) == 1:
        return (values[0],) * 3
    return tuple(statistics.quantiles(values, n=4, method='inclusive'))


def _wait(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
