"""Draw what the trainings logged: losses, and what the teacher answered."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calkd_det.commands.study.demo.files import Scalars

COLOURS = ('#6b7280', '#2f6f9f', '#c8553d', '#3f8f5f')
DIAGNOSTICS = {'teacher_confidence': '-', 'teacher_accuracy': '--', 'teacher_agreement': ':'}


def plot_curves(runs: Mapping[str, Scalars]) -> Figure:
    """Draw losses and teacher diagnostics over iterations.

    The first panel leaves the losses of distillation out, so that it shows the same sum for every
    run. The last one is of the last distilled run alone.

    Args:
        runs: What each student logged, by its title. The distilled ones have ``loss_kd``, or
            several losses with names that begin so.

    Returns:
        A figure; ``figure.savefig(path)`` writes it.
    """
    figure = Figure(figsize=(10, 6.6), dpi=150, layout='constrained')
    own, classification, distillation, diagnostics = figure.subplots(2, 2, sharex=True).flat
    for (title, scalars), colour in zip(runs.items(), COLOURS):
        steps = list(scalars)
        logged = list(scalars.values())
        style = dict(color=colour, lw=1.4, label=title)
        distilled = [_sum_of_distillation(entry) for entry in logged]
        own_loss = [entry['loss'] - part for entry, part in zip(logged, distilled)]
        own.plot(steps, own_loss, **style)
        classification.plot(steps, [entry['loss_cls'] for entry in logged], **style)
        if any(distilled):
            distillation.plot(steps, distilled, **style)
            last = title, colour, steps, logged
    title, colour, steps, logged = last
    for name, dashes in DIAGNOSTICS.items():
        style = dict(color=colour, lw=1.2, ls=dashes, label=name.removeprefix('teacher_'))
        diagnostics.plot(steps, [entry[name] for entry in logged], **style)
    for ax in (own, classification, distillation):
        ax.set_ylim(bottom=0)
    diagnostics.set_ylim(top=1)
    _finish(own, "the student's own losses, without distillation")
    _finish(classification, 'loss_cls')
    _finish(distillation, 'losses of distillation')
    _finish(diagnostics, f'the teacher on the RoIs of {title!r}')
    for ax in (distillation, diagnostics):
        ax.set_xlabel('iteration')
    return figure


def _sum_of_distillation(entry: Mapping[str, float]) -> float:
    return sum(value for name, value in entry.items() if name.startswith('loss_kd'))


def _finish(ax: Axes, title: str) -> None:
    ax.set_title(title, fontsize=11)
    ax.spines[['top', 'right']].set_visible(False)
    ax.grid(axis='y', color='#ececec', lw=0.8)
    ax.tick_params(labelsize=9)
    ax.legend(fontsize=8, edgecolor='none', ncols=2 if len(ax.lines) > 3 else 1)
