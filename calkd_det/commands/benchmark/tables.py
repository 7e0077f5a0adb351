"""The table of the benchmark, from what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from calkd_det.commands.benchmark.timing import spread
from calkd_det.commands.benchmark.ways import DEFAULT, STUDENT, TEACHER


def step_table(results: Sequence[dict[str, Any]]) -> str:
    """Return a table of the steps and parts of every config: time, loss and memory.

    Times are compared round by round: each figure is the median of the ratios of all rounds.
    """
    lines = [
        '| pair | what | time / limit | quartiles | time / CalKD | error of the KD loss '
        "| peak memory | against the student's plus the teacher's weights |",
        '|---|---|---|---|---|---|---|---|',
    ]
    for result in results:
        seconds = result['seconds']
        limits = [sum(pair) for pair in zip(seconds[STUDENT], seconds[TEACHER])]
        for name, values in seconds.items():
            low, middle, high = map(_share, spread(_ratios(values, limits)))
            lines.append(
                f'| {result["pair"]} | {name} | {middle} | {low}, {high} '
                f'| {_share(spread(_ratios(values, seconds[DEFAULT]))[1])} '
                f'| {_loss_error(result, name)} '
                f'| {_memory(result, name)} | {_extra_memory(result, name)} |'
            )
    return '\n'.join(lines)


def _ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    return [value / other for value, other in zip(values, others)]


def _share(value: float) -> str:
    return f'{value:.3f}' if value >= 0.1 else f'{value:.4f}'


def _loss_error(result: dict[str, Any], name: str) -> str:
    """Return how far the loss of distillation of another precision is from the default one's."""
    if name == DEFAULT or not name.startswith(DEFAULT):
        return ''
    loss, default = result['losses'][name], result['losses'][DEFAULT]
    return f'{abs(loss - default) / abs(default):.0e}'


def _memory(result: dict[str, Any], name: str) -> str:
    peak = result.get('peak_bytes', {}).get(name)
    return '' if peak is None else f'{peak / 2**30:.2f} GiB'


def _extra_memory(result: dict[str, Any], name: str) -> str:
    peaks = result.get('peak_bytes', {})
    if name not in peaks or name == STUDENT:
        return ''
    base = peaks[STUDENT] + result['teacher_bytes']
    return f'{100 * (peaks[name] / base - 1):+.1f} %'
