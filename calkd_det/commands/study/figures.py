"""Draw a study's results: against T, against a teacher's figures, as paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from calkd_det.calibration import Reliability
from calkd_det.calibration.diagram import draw_legend, plot_histogram, plot_reliability
from calkd_det.commands.study.relations import Relation
from calkd_det.commands.study.statistics import PairedDifference, mean_interval
from calkd_det.commands.study.wording import p_text

COLOURS = ('#2f6f9f', '#c8553d', '#4b8b3b', '#7a5ba6', '#b8860b', '#444444')
PAPER_RANGE = 1.5, 3.0  # the T that the published method is reported to work with
SHOWN, NOT_SHOWN, INK, GREY = '#c8553d', '#8a8a8a', '#222222', '#8a8a8a'


def plot_temperatures(
    series: Mapping[str, Mapping[float, Mapping[int, float]]],
    differences: Mapping[str, Mapping[float, PairedDifference]],
    alone: Mapping[int, float],
    fitted: Mapping[str, float],
) -> Figure:
    """Draw the student's mAP against T: means above, paired differences from T = 1 below.

    Args:
        series: By the teacher's name, by T, by seed: mAP in [0, 1].
        differences: By the teacher's name and T, from the same teacher's T = 1.
        alone: Of the student alone, by seed; may be empty.
        fitted: The fitted T of each teacher.

    Returns:
        A figure; ``figure.savefig(path)`` writes it.
    """
    figure = _figure(10, 6.4)
    panels = figure.subplots(2, len(series), sharex=True, sharey='row', squeeze=False)
    ticks = sorted({t for values in series.values() for t in values})
    for (name, values), (upper, lower), colour in zip(series.items(), panels.T, COLOURS):
        for ax in (upper, lower):
            ax.axvspan(*PAPER_RANGE, color='#f3e9c9', lw=0, zorder=0)
            if name in fitted:
                ax.axvline(fitted[name], color=GREY, lw=1, ls=':', zorder=1)
        xs = sorted(values)
        for x in xs:
            upper.plot([x] * len(values[x]), _percents(values[x]), '.', color=colour, alpha=0.35)
        means = [np.mean(_percents(values[x])) for x in xs]
        upper.plot(xs, means, 'o-', color=colour, lw=1.5, ms=5, label='mean over seeds')
        if alone:
            mean, interval = mean_interval(_percents(alone))
            upper.axhline(mean, color=INK, lw=1, ls='--', label='student alone')
            if interval:
                upper.axhspan(*interval, color=INK, alpha=0.07, lw=0, zorder=0)
        upper.set_title(f'teacher: {name}', fontsize=11, color=INK)
        lower.axhline(0, color=INK, lw=0.8)
        for x, found in sorted(differences.get(name, {}).items()):
            _draw_difference(lower, x, found, vertical=True)
        if 1.0 in values:
            lower.plot([1.0], [0], 'o', mfc='white', mec=INK, ms=5)
        lower.set_xscale('log')
        lower.set_xticks(ticks, [f'{tick:g}' for tick in ticks])
        lower.xaxis.set_minor_locator(NullLocator())
        lower.set_xlabel("T, the teacher's logits are divided by it")
    panels[0][0].set_ylabel("student's mAP, %")
    panels[1][0].set_ylabel('points above T = 1,\nsame seed, 95 % interval')
    panels[0][0].legend(fontsize=8, edgecolor='none')
    note = (
        f'shaded: the published range, T = {PAPER_RANGE[0]:g} to {PAPER_RANGE[1]:g}; dotted: '
        "fitted T; small dots: single seeds; red below: shown after Holm's correction"
    )
    figure.supxlabel(note, fontsize=8.5, color=GREY)
    for ax in panels.flat:
        _strip(ax)
    return figure


def plot_across(
    predictors: Mapping[str, Mapping[str, float]],
    students: Mapping[str, Mapping[int, float]],
    fits: Mapping[str, Relation | None],
) -> Figure:
    """Draw the students' mAP against what is known of their teachers, a panel a predictor.

    Args:
        predictors: By the predictor's name, then by the teacher's, in percent.
        students: By the teacher's name, by seed: mAP in [0, 1].
        fits: The line of each predictor through the means over seeds, in percent; the first one
            is drawn large.

    Returns:
        A figure.
    """
    figure = _figure(12.5, 6.6)
    columns = max(1, math.ceil((len(predictors) - 1) / 2))
    grid = figure.add_gridspec(2, columns + 2)
    places = [
        grid[:, :2],
        *(grid[i // columns, 2 + i % columns] for i in range(len(predictors) - 1)),
    ]
    for (name, values), place in zip(predictors.items(), places):
        ax = figure.add_subplot(place)
        large = place is places[0]
        names = [teacher for teacher in students if teacher in values]
        means: dict[str, float] = {}
        for teacher in names:
            mean, interval = mean_interval(_percents(students[teacher]))
            if interval is not None:
                ax.plot([values[teacher]] * 2, interval, color='#9db8cc', lw=0.9, zorder=1)
            ax.plot(values[teacher], mean, 'o', color=COLOURS[0], ms=6 if large else 4)
            means[teacher] = mean
        fit = fits.get(name)
        title = name
        if fit is not None:
            ends = np.array([min(values[t] for t in names), max(values[t] for t in names)])
            ax.plot(ends, fit.intercept + fit.slope * ends, color=COLOURS[1], lw=1.4)
            title += f'\nR² = {fit.r_squared:.2f}, {p_text(fit.adjusted_p)}'
        ax.set_title(title, fontsize=12 if large else 9, color=INK)
        ax.set_xlabel(f"teacher's {name}, %", fontsize=10 if large else 8)
        if large:
            ax.set_ylabel("student's mAP, %: mean over seeds, 95 % interval")
            _name_at_the_side(ax, {teacher: (values[teacher], means[teacher]) for teacher in names})
        _strip(ax)
    return figure


def plot_differences(
    differences: Mapping[str, PairedDifference], title: str, measure: str = 'mAP in points'
) -> Figure:
    """Draw paired differences as dots with 95 % intervals, a line a comparison.

    Args:
        differences: By the comparison's name, of an outcome whose hundredths are drawn.
        title: Shown above.
        measure: The outcome and the unit of its hundredths, ``'D-ECE in points'``.

    Returns:
        A figure.
    """
    figure = _figure(9, 1.3 + 0.42 * max(1, len(differences)))
    ax = figure.subplots()
    ax.axvline(0, color=INK, lw=0.8)
    for y, found in enumerate(differences.values()):
        xs = [100 * value for value in found.differences.values()]
        ax.plot(xs, [y + 0.18] * len(xs), '.', color='#b9c3cd', ms=5, zorder=1)
        _draw_difference(ax, y, found, vertical=False)
    ax.set_yticks(range(len(differences)), list(differences), fontsize=9)
    ax.set_ylim(len(differences) - 0.4, -0.6)
    ax.set_xlabel(f'difference of {measure}, same seed on both sides')
    ax.set_title(title, fontsize=11, color=INK, loc='left')
    _strip(ax, axis='x')
    note = "red: shown after Holm's correction; small dots: single seeds"
    figure.supxlabel(note, fontsize=8.5, color=GREY)
    return figure


def plot_reliabilities(diagrams: Mapping[str, Reliability]) -> Figure:
    """Draw the reliability of teachers side by side, with their histograms.

    Args:
        diagrams: By title.

    Returns:
        A figure.
    """
    figure = _figure(4.6 * max(1, len(diagrams)), 6.4)
    rows = figure.subplots(
        2, len(diagrams), sharex=True, sharey='row', height_ratios=(3.2, 1), squeeze=False
    )
    for (title, bins), diagram, histogram in zip(diagrams.items(), *rows):
        plot_reliability(bins, diagram, title=title)
        plot_histogram(bins, histogram)
    most = max(max(bins.count) for bins in diagrams.values())
    rows[1][0].set_ylim(0.7, 2.5 * most)
    rows[0][0].set_ylabel('accuracy')
    rows[1][0].set_ylabel('samples')
    draw_legend(figure)
    return figure


def _name_at_the_side(ax: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Write the names of points to the right of a panel, one above the other, lines to them."""
    low, high = ax.get_ylim()
    ax.set_ylim(low, high)
    gap = (high - low) * min(0.04, 1 / max(1, len(points) - 1))
    names = sorted(points, key=lambda name: points[name][1])
    places: list[float] = []
    for name in names:
        places.append(max(points[name][1], places[-1] + gap if places else low))
    ceiling = high
    for i in reversed(range(len(places))):
        places[i] = min(places[i], ceiling)
        ceiling = places[i] - gap
    for name, place in zip(names, places):
        ax.annotate(
            name,
            points[name],
            xytext=(1.04, place),
            textcoords=ax.get_yaxis_transform(),
            va='center',
            fontsize=8,
            color=INK,
            arrowprops=dict(
                arrowstyle='-', color='#c9c9c9', lw=0.7, relpos=(0, 0.5), shrinkA=1, shrinkB=4
            ),
        )


def _draw_difference(ax: Axes, place: float, found: PairedDifference, *, vertical: bool) -> None:
    colour = SHOWN if found.shown else NOT_SHOWN
    mean = 100 * found.mean
    if found.interval is not None:
        ends = [100 * end for end in found.interval]
        line = ([place, place], ends) if vertical else (ends, [place, place])
        ax.plot(*line, color=colour, lw=2, solid_capstyle='butt', zorder=2)
    at = ([place], [mean]) if vertical else ([mean], [place])
    ax.plot(*at, 'o', color=colour, ms=6, zorder=3)


def _percents(values: Mapping[int, float]) -> Sequence[float]:
    return [100 * value for value in values.values()]


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=150, layout='constrained')


def _strip(ax: Axes, axis: str = 'y') -> None:
    ax.spines[['top', 'right']].set_visible(False)
    ax.tick_params(labelsize=9, colors=INK)
    ax.grid(axis=axis, color='#ececec', lw=0.8)
    ax.set_axisbelow(True)
