"""Figures of each class against plain computations, and the report with them."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from calkd_det.calibration.reliability import reliability_from_confidences
from calkd_det.knowledge import Activation, HeadSamples
from calkd_det.measurement.analysis import CalibrationResult, analyse
from calkd_det.measurement.calibration_report import to_json, to_markdown, write_report
from calkd_det.measurement.class_table import class_calibration
from calkd_det.measurement.collect import SampleStore
from calkd_det.measurement.html_page import to_html
from calkd_det.teachers.class_map import ClassMap

NAMES = ['cat', 'dog', 'a|b']
ABOUT = {
    'teacher': {'config': 'configs/teacher.py', 'classes': NAMES},
    'data': {'annotation_file': 'held_out.json', 'num_images': 20, 'classes': NAMES},
}


def made_up(
    activation: Activation, with_qualities: bool = False, columns: int = 3
) -> tuple[SampleStore, HeadSamples]:
    generator = torch.Generator().manual_seed(0)
    width = columns + (activation == 'softmax')
    logits = 2 * torch.randn(600, width, generator=generator)
    scores = (logits / 1.5).softmax(1) if activation == 'softmax' else (logits / 1.5 - 1).sigmoid()
    drawn = torch.multinomial(scores, 1, generator=generator).squeeze(1)
    background = torch.rand(600, generator=generator) < 0.4
    labels = drawn if activation == 'softmax' else drawn.masked_fill(background, columns)
    samples = HeadSamples(
        logits=logits,
        labels=labels,
        weights=torch.rand(600, generator=generator) + 0.5,
        locations=torch.zeros(600, 5),
        activation=activation,
        qualities=torch.rand(600, generator=generator) if with_qualities else None,
    )
    store = SampleStore()
    for rows in torch.arange(600).split(170):
        part = samples.select(torch.isin(torch.arange(600), rows))
        store.append(part, rows % 20)
    return store, samples


def scores_of(logits: Tensor, activation: Activation) -> Tensor:
    return logits.softmax(dim=1)[:, :-1] if activation == 'softmax' else logits.sigmoid()


@pytest.mark.parametrize(
    ('activation', 'with_qualities'), [('softmax', False), ('sigmoid', False), ('sigmoid', True)]
)
def test_figures_of_each_class(activation: Activation, with_qualities: bool) -> None:
    store, samples = made_up(activation, with_qualities)
    found = class_calibration(store, 1.5)
    assert len(found) == 3
    for index, of_class in enumerate(found):
        is_class = samples.labels == index
        assert of_class.num_objects == int(is_class.sum()) > 10
        right = is_class.double()
        if with_qualities:
            right *= samples.qualities.double()
        for errors, temperature in ((of_class.before, 1.0), (of_class.after, 1.5)):
            scores = scores_of(samples.logits.double() / temperature, activation)[:, index]
            bins = reliability_from_confidences(scores, right, weights=samples.weights)
            assert errors.ece == pytest.approx(bins.ece, abs=1e-9)
            high = scores >= 0.05
            weights = samples.weights.double()[high]
            gap = ((scores - right)[high] * weights).sum() / weights.sum()
            assert errors.score_gap == pytest.approx(float(gap), abs=1e-9)
            assert errors.reported == pytest.approx(float(weights.sum()))


def test_a_class_without_high_scores_has_no_gap() -> None:
    store, samples = made_up('sigmoid')
    low = SampleStore()
    logits = samples.logits.clone()
    logits[:, 1] = -9
    low.append(HeadSamples(logits, samples.labels, samples.weights, None, 'sigmoid'), store.groups)
    found = class_calibration(low, 1.0)
    assert found[1].before.score_gap is None
    assert found[0].before.score_gap is not None
    assert '| dog | ' in to_markdown(report_of(low), Path('out'))
    json.dumps(to_json(report_of(low)), allow_nan=False)


def test_classes_that_are_not_labelled_are_background() -> None:
    store, samples = made_up('softmax', columns=5)
    class_map = ClassMap([4, 0, 2], 5)
    merged = torch.isin(samples.labels, torch.tensor([1, 3]))
    labels = samples.labels.masked_fill(merged, 5)
    store = SampleStore()
    store.class_map = class_map
    store.append(
        HeadSamples(samples.logits, labels, samples.weights, None, 'softmax'),
        torch.arange(600) % 20,
    )
    found = class_calibration(store, 2.0)
    assert [one.num_objects for one in found] == [int((labels == c).sum()) for c in (4, 0, 2)]
    scores = class_map(samples.logits.double() / 2).softmax(dim=1)[:, 1]
    bins = reliability_from_confidences(scores, labels == 0, weights=samples.weights)
    assert found[1].after.ece == pytest.approx(bins.ece, abs=1e-9)


def report_of(store: SampleStore) -> CalibrationResult:
    return analyse({'distillation': store}, ABOUT)


def test_report_has_bins_classes_and_one_page(tmp_path: Path) -> None:
    report = report_of(made_up('softmax')[0])
    files = {path.name: path for path in write_report(report, tmp_path)}
    content = json.loads(files['temperature.json'].read_text('utf-8'))
    for key, measured in (('before', report.sets['distillation'].before), ('after', None)):
        bins = content['bins'][key]
        assert len(bins['lower']) == len(bins['accuracy']) == 15
        assert sum(bins['count']) == content['num_samples'] == 600
        held = [i for i, count in enumerate(bins['count']) if count]
        gaps = [abs(bins['accuracy'][i] - bins['confidence'][i]) * bins['weight'][i] for i in held]
        assert sum(gaps) / sum(bins['weight']) == pytest.approx(content[key]['ece'])
        if measured is not None:
            assert measured.reliability.num_samples == 600
    assert [entry['class'] for entry in content['classes']] == NAMES
    assert sum(entry['num_objects'] for entry in content['classes']) == content['num_foreground']
    text = files['report.md'].read_text('utf-8')
    (row,) = re.findall(r'^\| cat \| .*$', text, re.MULTILINE)
    assert f'{content["classes"][0]["num_objects"]:,} ' in row
    assert f'{100 * content["classes"][0]["after"]["ece"]:.3f} %' in row

    page = files['report.html'].read_text('utf-8')
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 1
    kind, _, encoded = sources[0].partition(',')
    assert kind == 'data:image/png;base64'
    assert base64.b64decode(encoded) == files['reliability_distillation.png'].read_bytes()
    assert 'href=' not in page
    assert '<title>Calibration of teacher</title>' in page
    assert page.count('<table>') == text.count('\n|---') + text.count('\n| ---')
    assert '<td>a|b</td>' in page


def test_a_page_shows_html_as_text(tmp_path: Path) -> None:
    page = to_html('# A <b>bold</b> name\n\n<script>alert(1)</script>', tmp_path)
    assert '<script>' not in page
    assert '&lt;script&gt;alert(1)' in page
    assert '<title>A &lt;b&gt;bold' in page
