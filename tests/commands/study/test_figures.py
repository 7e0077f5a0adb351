"""What is written in a figure can be read."""

from __future__ import annotations

import itertools

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from calkd_det.commands.study.figures import plot_across


@pytest.mark.parametrize('spread', [0.0, 0.001, 0.3])
def test_names_of_teachers_do_not_overlap(spread: float) -> None:
    names = [f'teacher number {number}' for number in range(13)]
    predictors = {
        key: {name: 1.0 + spread * number for number, name in enumerate(names)}
        for key in ('ECE', 'mAP', 'ACE')
    }
    students = {
        name: {seed: 0.2 + 0.01 * seed + 0.001 * spread * number for seed in range(3)}
        for number, name in enumerate(names)
    }
    figure = plot_across(predictors, students, {})
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = figure.axes[0].texts
    assert sorted(text.get_text() for text in texts) == sorted(names)
    # Of the words alone, without the lines to the points.
    boxes = [Text.get_window_extent(text, canvas.get_renderer()) for text in texts]
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    panel = figure.axes[0].get_window_extent()
    assert all(box.x0 > panel.x1 for box in boxes)
    others = [ax.get_tightbbox(canvas.get_renderer()) for ax in figure.axes[1:]]
    assert not any(box.overlaps(other) for box in boxes for other in others)
