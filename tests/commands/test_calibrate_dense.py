"""The calibration tool on a detector that classifies every location by sigmoids."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import dense_cases
import helpers
import pytest
import torch
from mmengine.config import Config

from calkd_det import config_path
from calkd_det.calibration import TemperatureScaling
from calkd_det.calibration.temperature import fit_temperature
from calkd_det.datasets.mini import write_mini_dataset
from calkd_det.measurement.analysis import analyse
from calkd_det.measurement.calibration_report import to_json
from calkd_det.measurement.collect import collect_samples
from calkd_det.measurement.held_out import read_held_out
from calkd_det.taps import find_tap

TEACHER = 'mini/retinanet_r18-teacher_fpn_12e_mini.py'
DATA = ['--ann=data/mini/annotations/calibration.json', '--images=data/mini/calibration']


@pytest.fixture(scope='module')
def tool() -> ModuleType:
    return helpers.load_tool('calibrate_teacher')


@pytest.fixture
def cfg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A user's folder: data/mini, the config of a tiny RetinaNet and its weights."""
    monkeypatch.chdir(tmp_path)
    # Few enough locations that the background has a rest to draw from.
    for name in ('NUM_HARDEST', 'NUM_DRAWN'):
        monkeypatch.setattr(f'calkd_det.taps.dense_samples.{name}', 40)
    write_mini_dataset(
        'data/mini', num_images=dict(train=8, calibration=6, val=8), image_size=96, seed=2
    )
    cfg = Config.fromfile(config_path(TEACHER))
    cfg.model = dense_cases.detector_config('RetinaNet')
    cfg.model.bbox_head.num_classes = 10
    cfg.dump('teacher.py')
    detector = helpers.build(cfg.model)
    detector.init_weights()
    meta = dict(dataset_meta=dict(classes=cfg.classes))
    torch.save(dict(meta=meta, state_dict=detector.state_dict()), 'teacher.pth')
    return cfg


def test_the_tool_fits_and_reports(
    tool: ModuleType, cfg: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ['teacher.py', 'teacher.pth', '--workers=0', '--device=cpu', *DATA]
    assert tool.main(args) == 0
    assert 'samples, ' in capsys.readouterr().out
    out = Path('calibration/teacher')
    assert sorted(path.name for path in out.iterdir()) == [
        'reliability_distillation.png',
        'report.html',
        'report.md',
        'temperature.json',
    ]
    content = json.loads((out / 'temperature.json').read_text())
    text = (out / 'report.md').read_text()
    assert "What the head's loss sees of every location: all of the foreground" in text
    assert content['fitted_to'] == 'labels'
    assert 'mean quality' not in text
    assert 'RoI' not in text + json.dumps(content)
    assert 6 * 80 < content['num_samples'] < 6 * 80 + content['num_foreground'] + 1
    assert content['after']['nll'] < content['before']['nll']
    assert TemperatureScaling(out / 'temperature.json').temperature == content['temperature']


@pytest.mark.parametrize('name', ['GFL', 'YOLOX'])
def test_a_head_that_predicts_a_quality_is_fitted_to_it(cfg: Config, name: str) -> None:
    cfg.model = dense_cases.detector_config(name)
    cfg.model.bbox_head.num_classes = 10
    detector = helpers.build(cfg.model)
    detector.init_weights()
    paths = (Path(arg.split('=')[1]) for arg in DATA)
    data = read_held_out(cfg, *paths, num_classes=10, classes=cfg.classes)
    store = collect_samples(detector, data.dataset)['distillation']
    assert store.has_qualities
    logits, targets, weights, _ = store.evenly_spaced_images(10**9)
    assert targets.shape == logits.shape
    foreground = store.labels < 10
    assert torch.equal(targets.argmax(dim=1)[foreground], store.labels[foreground])
    assert (targets[~foreground] == 0).all()
    assert 0 < targets[foreground].sum(dim=1).mean() < 1
    fit = fit_temperature(logits, targets, weights=weights, activation='sigmoid')
    report = analyse({'distillation': store}, {'teacher': dict(config=name), 'data': {}})
    assert report.fit.temperature == pytest.approx(fit.temperature, rel=1e-4)
    assert report.comparison is not None
    assert to_json(report)['fitted_to'] == 'qualities'
    values = report.sets['distillation'].before.values
    top = logits.sigmoid().argmax(dim=1, keepdim=True)
    quality = (targets.gather(1, top).squeeze(1) * weights).sum() / weights.sum()
    assert values['mean_accuracy'] == pytest.approx(float(quality), abs=1e-6)


def test_the_temperature_is_that_of_all_samples(cfg: Config) -> None:
    """The share of the background gives the T that the whole of it would, up to the draw."""
    detector = helpers.build(cfg.model)
    state = torch.load('teacher.pth')
    detector.load_state_dict(state['state_dict'])
    paths = (Path(arg.split('=')[1]) for arg in DATA)
    data = read_held_out(cfg, *paths, num_classes=10, classes=cfg.classes)
    store = collect_samples(detector, data.dataset, seed=1)['distillation']
    logits, labels, weights, groups = store.evenly_spaced_images(10**9)
    share = fit_temperature(logits, labels, weights=weights, groups=groups, activation='sigmoid')

    everything = []
    for sample in data.dataset:
        with torch.no_grad(), find_tap(detector.eval(), 'model').record(detector) as samples:
            batch = {key: [value] for key, value in sample.items()}
            detector(**detector.data_preprocessor(batch, False), mode='loss')
        everything += samples
    logits, labels, weights = (
        torch.cat([getattr(group, name) for group in everything])
        for name in ('logits', 'labels', 'weights')
    )
    assert len(logits) > 2 * len(store)
    assert float(store.weights.sum()) == pytest.approx(float(weights.sum()), rel=1e-5)
    whole = fit_temperature(logits, labels, weights=weights, activation='sigmoid')
    assert share.temperature == pytest.approx(whole.temperature, rel=0.02)
