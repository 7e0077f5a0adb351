"""Reliability diagrams show the values of their bins and change no state of pyplot."""

from __future__ import annotations

import sys

import pytest
import torch
from matplotlib.figure import Figure

from calkd_det.calibration.diagram import plot_before_after, plot_reliability
from calkd_det.calibration.reliability import reliability


@pytest.fixture
def bins():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 4, generator=generator) * 3
    labels = torch.randint(4, (500,), generator=generator)
    return [reliability((logits / t).softmax(1), labels) for t in (1, 3)]


def points(ax):
    return [tuple(line.get_xydata()[0]) for line in ax.lines if line.get_marker() == 'o']


def test_points_lie_at_mean_confidence_and_accuracy(bins):
    figure = plot_reliability(bins[0], title='teacher')
    filled = [pair for pair in zip(bins[0].confidence, bins[0].accuracy) if pair[1] == pair[1]]
    assert len(filled) < len(bins[0].count), 'the example should have an empty bin'
    assert points(figure.axes[0]) == filled
    assert figure.axes[0].get_title() == 'teacher'
    assert figure.axes[1].get_yscale() == 'log'


def test_printed_errors_come_from_the_bins(bins):
    figure = plot_before_after(bins[0], bins[1], 3.0)
    for data, ax in zip(bins, figure.axes):
        text = ax.texts[0].get_text()
        for value in (data.ece, data.ece_over, data.ece_under, data.mce):
            assert f'{100 * value:.2f} %' in text
    assert 'T = 3.00' in figure.axes[1].get_title()


def test_draws_on_given_axes(bins):
    figure = Figure()
    ax = figure.subplots()
    assert plot_reliability(bins[0], ax) is figure
    assert len(figure.axes) == 1
    assert points(ax)


def test_saves_without_pyplot_figures(bins, tmp_path):
    path = tmp_path / 'diagram.png'
    plot_before_after(*bins, 3.0, title='teacher').savefig(path)
    assert path.stat().st_size > 10_000
    pyplot = sys.modules.get('matplotlib.pyplot')
    assert pyplot is None or pyplot.get_fignums() == []


def test_one_sample_can_be_drawn(tmp_path):
    single = reliability(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    plot_reliability(single).savefig(tmp_path / 'one.png')
