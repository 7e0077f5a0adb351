"""Reliability diagrams of :class:`~calkd_det.calibration.reliability.Reliability`."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator

from calkd_det.calibration.reliability import Reliability, wilson_interval

OVER_CONFIDENT = '#c8553d'
UNDER_CONFIDENT = '#2f6f9f'
_TEXT_COLOR = '#222222'
_DIAGONAL_COLOR = '#8a8a8a'


def plot_reliability(
    reliability: Reliability, ax: Axes | None = None, *, title: str | None = None
) -> Figure:
    """Draw accuracy against confidence, one point a bin, on ``ax`` or on a new figure.

    Each point lies at the mean confidence of its bin. The bar from the diagonal to the point is
    the gap that the ECE sums, coloured by its sign. The line is a 95 % Wilson interval. Empty bins
    are left out. A new figure also gets :func:`plot_histogram` below the diagram. The state of
    pyplot is not changed.

    Args:
        reliability: The bins to draw.
        ax: Axes for the diagram alone, or None for a new figure.
        title: Title of the diagram.

    Returns:
        The figure with the diagram; ``figure.savefig(path)`` writes it.
    """
    if ax is not None:
        _draw_reliability(ax, reliability, title)
        return ax.figure
    figure = _new_figure(5.0)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    _draw_reliability(upper, reliability, title)
    plot_histogram(reliability, lower)
    upper.set_ylabel('accuracy')
    lower.set_ylabel('samples')
    draw_legend(figure)
    return figure


def plot_histogram(reliability: Reliability, ax: Axes) -> None:
    """Draw the number of samples of each bin on a log axis."""
    for lower, upper, count in zip(reliability.lower, reliability.upper, reliability.count):
        if count:
            ax.bar(
                lower,
                count,
                upper - lower,
                align='edge',
                color='#c9ced6',
                edgecolor='white',
                lw=0.6,
            )
    ax.set_yscale('log')
    ax.set_ylim(0.7, 2.5 * max(reliability.count))
    ax.yaxis.set_major_locator(LogLocator(numticks=5))
    ax.minorticks_off()
    ax.set_xlim(0, 1)
    ax.set_xlabel('confidence')
    _style_axes(ax)


def plot_before_after(
    before: Reliability,
    after: Reliability,
    temperature: float,
    *,
    title: str | None = None,
) -> Figure:
    """Draw reliability at T = 1 and at ``temperature`` side by side, with their histograms.

    Args:
        before: Reliability at T = 1.
        after: Reliability at ``temperature``.
        temperature: The T of ``after``.
        title: Title of the figure.

    Returns:
        The figure; ``figure.savefig(path)`` writes it.
    """
    figure = _new_figure(9.2)
    diagrams, histograms = figure.subplots(2, 2, sharex=True, sharey='row', height_ratios=(3.2, 1))
    panels = ((before, 'before: T = 1'), (after, f'after: T = {temperature:.2f}'))
    for (data, name), diagram, histogram in zip(panels, diagrams, histograms):
        _draw_reliability(diagram, data, name)
        plot_histogram(data, histogram)
    histograms[0].set_ylim(0.7, 2.5 * max(before.count + after.count))
    diagrams[0].set_ylabel('accuracy')
    histograms[0].set_ylabel('samples')
    if title:
        figure.suptitle(title, fontsize=13, color=_TEXT_COLOR)
    draw_legend(figure)
    return figure


def _new_figure(width: float) -> Figure:
    figure = Figure(figsize=(width, 6.4), dpi=150, layout='constrained')
    FigureCanvasAgg(figure)
    return figure


def _draw_reliability(ax: Axes, reliability: Reliability, title: str | None) -> None:
    ax.plot([0, 1], [0, 1], color=_DIAGONAL_COLOR, lw=1, ls=(0, (4, 3)), zorder=1)
    bins = zip(
        reliability.lower,
        reliability.upper,
        reliability.confidence,
        reliability.accuracy,
        reliability.effective_count,
    )
    for lower, upper, confidence, accuracy, count in bins:
        if math.isnan(accuracy):
            continue
        color = OVER_CONFIDENT if accuracy < confidence else UNDER_CONFIDENT
        # Equal-mass bins can be very wide, and their bars would cover their neighbours.
        half = min(0.42 * (upper - lower), 0.028)
        ax.bar(
            confidence, accuracy - confidence, 2 * half, bottom=confidence, color=color, alpha=0.35
        )
        ax.vlines(confidence, *wilson_interval(accuracy, count), color=color, lw=1.4, zorder=3)
        ax.plot(confidence, accuracy, 'o', ms=4.5, color=color, mec='white', mew=0.7, zorder=4)
    ax.text(
        0.04,
        0.96,
        f'ECE               {100 * reliability.ece:5.2f} %\n'
        f'  over-confident  {100 * reliability.ece_over:5.2f} %\n'
        f'  under-confident {100 * reliability.ece_under:5.2f} %\n'
        f'MCE               {100 * reliability.mce:5.2f} %',
        transform=ax.transAxes,
        va='top',
        family='monospace',
        fontsize=8.5,
        color=_TEXT_COLOR,
        bbox={'boxstyle': 'round,pad=0.4', 'fc': 'white', 'ec': '#d5d5d5', 'lw': 0.8},
    )
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    if title:
        ax.set_title(title, fontsize=11, color=_TEXT_COLOR)
    _style_axes(ax)


def draw_legend(figure: Figure) -> None:
    """Draw the legend of colours and lines below all panels of a figure."""
    figure.legend(
        handles=[
            Patch(color=OVER_CONFIDENT, alpha=0.5, label='over-confident'),
            Patch(color=UNDER_CONFIDENT, alpha=0.5, label='under-confident'),
            Line2D([], [], color=_TEXT_COLOR, lw=1.4, label='95 % Wilson interval'),
            Line2D(
                [], [], color=_DIAGONAL_COLOR, lw=1, ls=(0, (4, 3)), label='perfectly calibrated'
            ),
        ],
        loc='outside lower center',
        ncols=4 if figure.get_figwidth() > 7 else 2,
        frameon=False,
        fontsize=9,
    )


def _style_axes(ax: Axes) -> None:
    ax.spines[['top', 'right']].set_visible(False)
    ax.tick_params(labelsize=9, colors=_TEXT_COLOR)
    ax.grid(axis='y', color='#ececec', lw=0.8)
    ax.set_axisbelow(True)
