"""Tables and the plot of the benchmark, from what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from calkd_det.commands.benchmark.timing import spread
from calkd_det.commands.benchmark.ways import DEFAULT, KD_PART, STUDENT, TEACHER


def step_table(results: Sequence[dict[str, Any]]) -> str:
    """Return a table of all ways of every config: time, loss and memory."""
    lines = [
        '| pair | way | step / limit | quartiles | step / CalKD | error of the KD loss '
        "| peak memory | against the student's plus the teacher's weights |",
        '|---|---|---|---|---|---|---|---|',
    ]
    for result in results:
        limit = limit_of(result)
        default = median(result, DEFAULT)
        for name, seconds in result['seconds'].items():
            if name in (TEACHER, KD_PART):
                continue
            low, middle, high = spread(seconds)
            lines.append(
                f'| {result["pair"]} | {name} | {middle / limit:.3f} '
                f'| {low / limit:.3f}, {high / limit:.3f} | {middle / default:.2f} '
                f'| {_loss_error(result, name)} | {_memory(result, name)} '
                f'| {_extra_memory(result, name)} |'
            )
        lines.append(
            f'| {result["pair"]} | {KD_PART} | {median(result, KD_PART) / limit:.4f} | | | | | |'
        )
    return '\n'.join(lines)


def _loss_error(result: dict[str, Any], name: str) -> str:
    loss, default = result['losses'].get(name), result['losses'][DEFAULT]
    # The reference ways compare other samples, or the same ones with a teacher not folded.
    if loss is None or name == DEFAULT or not name.startswith(DEFAULT):
        return ''
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


def growth_table(points: Sequence[dict[str, Any]]) -> str:
    """Return a table of the cost by axis, each value against the first of its axis."""
    lines = [
        '| what grows | value | logits | student | teacher | KD part | CalKD step / limit '
        '| KD part of the step | KD part grew | logits grew |',
        '|---|---|---|---|---|---|---|---|---|---|',
    ]
    first: dict[str, dict[str, Any]] = {}
    for point in points:
        base = first.setdefault(point['axis'], point)
        unit = limit_of(base)
        student, teacher, kd = (median(point, way) for way in (STUDENT, TEACHER, KD_PART))
        lines.append(
            f'| {point["axis"]} | {point["value"]} | {point["logits"]:,} '
            f'| {student / unit:.3f} | {teacher / unit:.3f} '
            f'| {kd / unit:.4f} | {median(point, DEFAULT) / limit_of(point):.3f} '
            f'| {100 * kd / median(point, DEFAULT):.2f} % '
            f'| {kd / median(base, KD_PART):.2f} × '
            f'| {point["logits"] / base["logits"]:.2f} × |'
        )
    return '\n'.join(lines)


def growth_plot(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a PNG of student, teacher and KD part as stacked bars, one panel an axis."""
    axes_names = list(dict.fromkeys(point['axis'] for point in points))
    figure = Figure(figsize=(2.6 * len(axes_names), 3.4), layout='constrained')
    panels = figure.subplots(1, len(axes_names), squeeze=False)[0]
    parts = ((STUDENT, '#4c72b0'), (TEACHER, '#dd8452'), (KD_PART, '#c44e52'))
    for panel, axis in zip(panels, axes_names):
        own = [point for point in points if point['axis'] == axis]
        unit = limit_of(own[0])
        bottom = [0.0] * len(own)
        for name, colour in parts:
            heights = [median(point, name) / unit for point in own]
            panel.bar(range(len(own)), heights, bottom=bottom, color=colour, label=name, width=0.7)
            bottom = [low + height for low, height in zip(bottom, heights)]
        labels = [_short(point['value']) for point in own]
        panel.set_xticks(range(len(own)), labels, fontsize=8)
        panel.set_title(axis, fontsize=10)
        panel.spines[['top', 'right']].set_visible(False)
    panels[0].set_ylabel('time of a step,\nthe first of each panel = 1')
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=3, frameon=False)
    figure.savefig(path, dpi=150)


def median(result: dict[str, Any], name: str) -> float:
    """Return the median seconds of a way."""
    return spread(result['seconds'][name])[1]


def limit_of(result: dict[str, Any]) -> float:
    """Return the seconds of the student's step and of the teacher's bare inference."""
    return median(result, STUDENT) + median(result, TEACHER)


def _short(value: str) -> str:
    """Return ``x101`` for ``faster-rcnn_x101-64x4d_fpn_1x_coco``, else all."""
    parts = value.split('_')
    return parts[1].split('-')[0] if len(parts) > 1 else value
