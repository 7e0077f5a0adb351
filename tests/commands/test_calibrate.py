"""The calibration tool: its numbers against direct computations, its files, its sentences."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import helpers
import pytest
import torch
from mmengine.config import Config
from torch import Tensor

from calkd_det import config_path
from calkd_det.calibration import TemperatureScaling
from calkd_det.calibration.reliability import adaptive_ece, reliability
from calkd_det.calibration.scores import brier_score, negative_log_likelihood
from calkd_det.calibration.temperature import TemperatureFit, fit_temperature
from calkd_det.datasets.mini import write_mini_dataset
from calkd_det.errors import TeacherError
from calkd_det.measurement.analysis import METRICS, CalibrationResult, analyse, disagree, fit_set
from calkd_det.measurement.calibration_report import to_json, to_markdown, write_report
from calkd_det.measurement.collect import SampleStore
from calkd_det.taps import HeadSamples

ABOUT = {
    'teacher': {'config': 'configs/teacher.py', 'checkpoint': 'teacher.pth'},
    'data': {'annotation_file': 'held_out.json', 'num_images': 40},
}
TEACHER = 'mini/faster-rcnn_r18-teacher_fpn_12e_mini.py'


def draw(temperature: float, seed: int = 0, count: int = 2000) -> tuple[Tensor, Tensor, Tensor]:
    """Logits for which ``temperature`` is right, labels and image numbers."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(count, 6, generator=generator)
    probs = (logits / temperature).softmax(dim=1)
    labels = torch.multinomial(probs, 1, generator=generator).squeeze(1)
    return logits, labels, torch.arange(count) % 40


def stored(*parts: Tensor) -> SampleStore:
    logits, labels, groups = parts
    store = SampleStore()
    for rows in torch.arange(len(labels)).split(300):
        samples = HeadSamples(
            logits[rows],
            labels[rows],
            torch.ones(len(rows)),
            torch.zeros(len(rows), 5),
            activation='softmax',
        )
        store.append(samples, groups[rows])
    return store


def report_of(**temperatures: float) -> CalibrationResult:
    return analyse({name: stored(*draw(t)) for name, t in temperatures.items()}, ABOUT)


def expected_metrics(logits: Tensor, labels: Tensor, temperature: float) -> dict[str, float]:
    probs = (logits.double() / temperature).softmax(dim=1)
    bins = reliability(probs, labels)
    return {
        'nll': negative_log_likelihood(logits, labels, temperature=temperature),
        'ece': bins.ece,
        'ece_over': bins.ece_over,
        'ece_under': bins.ece_under,
        'mce': bins.mce,
        'ace': adaptive_ece(probs, labels),
        'brier': brier_score(probs, labels),
        'mean_confidence': float(probs.max(dim=1).values.mean()),
        'mean_accuracy': float((logits.argmax(dim=1) == labels).double().mean()),
    }


@pytest.mark.parametrize('chunk_bytes', [1000, 4 << 20])
def test_numbers_are_those_of_all_samples_at_once(
    monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr('calkd_det.measurement.collect._CHUNK_BYTES', chunk_bytes)
    logits, labels, groups = draw(2.5)
    result = fit_set(stored(logits, labels, groups), 'distillation')
    fit = fit_temperature(logits, labels, groups=groups)
    assert result.fit.temperature == pytest.approx(fit.temperature, rel=1e-4)
    assert result.fit.interval == pytest.approx(fit.interval, rel=1e-4)
    assert result.fit.interval[0] < 2.5 < result.fit.interval[1]
    assert result.num_samples == 2000
    assert result.num_foreground == int((labels < 5).sum())
    for found, temperature in ((result.before, 1.0), (result.after, result.fit.temperature)):
        expected = expected_metrics(logits, labels, temperature)
        assert list(found.values) == list(METRICS) == list(expected)
        assert found.values == pytest.approx(expected, rel=1e-9)


def test_temperature_is_that_of_the_samples_of_distillation(tmp_path: Path) -> None:
    report = report_of(distillation=2.0, proposals=1.0, detections=2.05)
    paths = write_report(report, tmp_path / 'out')
    assert [path.name for path in paths] == [
        'temperature.json',
        'report.md',
        'report.html',
        'reliability_distillation.png',
        'reliability_proposals.png',
        'reliability_detections.png',
    ]
    assert all(path.stat().st_size > 0 for path in paths)
    content = json.loads(paths[0].read_text())
    assert content['schema_version'] == 1
    assert content['temperature'] == report.sets['distillation'].fit.temperature
    assert content['after'] == report.sets['distillation'].after.values
    assert content['teacher'] == ABOUT['teacher']
    assert list(content['comparison']) == ['proposals', 'detections']
    assert TemperatureScaling(str(paths[0])).temperature == content['temperature']
    assert len(content['warnings']) == 1
    assert content['warnings'][0].startswith('The proposals ask for another temperature')
    text = paths[1].read_text()
    assert '# Calibration of teacher\n' in text
    assert f'temperature={str(paths[0])!r})' in text
    assert content['warnings'][0] in text


def fit(temperature: float, low: float, high: float) -> TemperatureFit:
    return TemperatureFit(temperature, 1, 1, False, (low, high), 10, 10, (0.05, 20))


def test_disagreement_takes_a_ratio_and_intervals_that_are_apart() -> None:
    assert disagree(fit(1, 0.9, 1.1), fit(1.3, 1.2, 1.4))
    assert disagree(fit(1.3, 1.2, 1.4), fit(1, 0.9, 1.1))
    assert not disagree(fit(1, 0.9, 1.1), fit(1.2, 1.15, 1.25))  # sure, but small
    assert not disagree(fit(1, 0.9, 1.3), fit(1.5, 1.2, 1.8))  # large, but unsure
    assert not disagree(replace(fit(1, 1, 1), interval=None), fit(2, 2, 2))


def test_a_bound_is_a_warning() -> None:
    logits, _, groups = draw(1)
    always_right = logits.argmax(dim=1)
    report = analyse({'distillation': stored(logits, always_right, groups)}, ABOUT)
    assert to_json(report)['at_bound'] is True
    assert report.warnings[0].startswith('T stopped at the bound 0.05')
    assert '> **Warning:** T stopped' in to_markdown(report, Path('out'))


def test_sets_without_samples() -> None:
    samples = stored(*draw(1))
    report = analyse({'distillation': samples, 'detections': SampleStore()}, ABOUT)
    assert list(report.sets) == ['distillation']
    assert report.warnings == ('There are no detections to compare with.',)
    with pytest.raises(TeacherError, match='no temperature can be fitted to the distillation'):
        analyse({'distillation': SampleStore()}, ABOUT)


def test_one_image_has_no_interval() -> None:
    logits, labels, groups = draw(1)
    report = analyse({'distillation': stored(logits, labels, 0 * groups)}, ABOUT)
    assert to_json(report)['interval_95'] is None
    assert 'interval' not in to_markdown(report, Path('out'))


@pytest.fixture(scope='module')
def tool() -> ModuleType:
    return helpers.load_tool('calibrate_teacher')


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A user's folder: data/mini, the config of a tiny teacher and its weights."""
    monkeypatch.chdir(tmp_path)
    write_mini_dataset(
        'data/mini', num_images=dict(train=8, calibration=12, val=8), image_size=96, seed=2
    )
    cfg = Config.fromfile(config_path(TEACHER))
    cfg.model = helpers.detector_config(num_classes=10)
    cfg.dump('teacher.py')
    helpers.save_teacher(Path('teacher.pth'), cfg.model, classes=cfg.classes)
    # Weights that were never trained are best at T = infinity, but for a guess: background.
    content = torch.load('teacher.pth')
    content['state_dict']['roi_head.bbox_head.fc_cls.weight'].mul_(0.1)
    content['state_dict']['roi_head.bbox_head.fc_cls.bias'].mul_(0.1)[-1] += 3
    torch.save(content, 'teacher.pth')
    return SimpleNamespace(
        cfg=cfg,
        args=['teacher.py', 'teacher.pth', '--workers=0', '--device=cpu'],
        data=['--ann=data/mini/annotations/calibration.json', '--images=data/mini/calibration'],
    )


@pytest.mark.slow
def test_end_to_end(
    tool: ModuleType, files: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main(files.args + files.data) == 0
    shown = capsys.readouterr().out
    out = Path('calibration/teacher')
    content = json.loads((out / 'temperature.json').read_text())
    line = f"calibrator=dict(type='TemperatureScaling', temperature='{out}/temperature.json')"
    assert line in shown
    assert f'T = {content["temperature"]:.3f}, 95 % interval' in shown
    assert not content['at_bound']
    assert content['interval_95'][0] < content['temperature'] < content['interval_95'][1]
    assert content['after']['nll'] < content['before']['nll']
    assert 'dataloader' not in shown
    assert TemperatureScaling(out / 'temperature.json').temperature == content['temperature']
    assert content['num_samples'] == 12 * 32
    assert content['data']['num_images'] == content['data']['num_images_in_file'] == 12
    for key, path in (
        (content['teacher']['checkpoint_sha256'], 'teacher.pth'),
        (content['data']['annotation_file_sha256'], 'data/mini/annotations/calibration.json'),
    ):
        assert key == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert content['versions']['torch'] == torch.__version__
    assert sorted(path.name for path in out.iterdir()) == [
        'reliability_detections.png',
        'reliability_distillation.png',
        'reliability_proposals.png',
        'report.html',
        'report.md',
        'temperature.json',
    ]

    # A distilled detector is its plain self here, and needs no teacher's file.
    files.cfg.model.update(
        type='CalKDFasterRCNN',
        teacher=dict(config='gone.py', checkpoint='gone.pth'),
        distillation=dict(type='KDLoss'),
    )
    files.cfg.dump('calkd.py')
    assert tool.main(['calkd.py', *files.args[1:], *files.data]) == 0
    same = json.loads(Path('calibration/calkd/temperature.json').read_text())
    assert same['temperature'] == content['temperature']


@pytest.mark.usefixtures('undrawn')
def test_the_training_data_are_a_warning(
    tool: ModuleType, files: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ['--ann=data/mini/annotations/train.json', '--images=data/mini/train']
    assert tool.main([*files.args, *data, '--max-images=2', '--out=looked']) == 0
    assert 'which is in train_dataloader' in capsys.readouterr().out
    content = json.loads(Path('looked/temperature.json').read_text())
    assert (content['data']['num_images'], content['data']['num_images_in_file']) == (2, 8)
    assert 'the same as' in content['warnings'][0]


@pytest.mark.usefixtures('undrawn')
def test_more_images_than_there_are_is_all(
    tool: ModuleType, files: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main([*files.args, *files.data, '--max-images=999', '--out=looked']) == 0
    content = json.loads(Path('looked/temperature.json').read_text())
    assert content['data']['num_images'] == content['data']['num_images_in_file']


@pytest.mark.parametrize('given', [[], ['--ann=held_out.json'], ['--images=folder']])
def test_there_is_no_default_for_the_data(
    tool: ModuleType, given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        tool.main(['teacher.py', 'teacher.pth', *given])
    assert stopped.value.code == 2
    assert 'neither trained the teacher nor judge the student' in capsys.readouterr().err


@pytest.mark.parametrize('given', ['--workers=-1', '--batch-size=0', '--max-images=few'])
def test_numbers_are_checked(
    tool: ModuleType, given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        tool.main(['teacher.py', 'teacher.pth', '--ann=held_out.json', '--images=folder', given])
    assert stopped.value.code == 2
    assert 'must be a whole number >=' in capsys.readouterr().err


def rewrite(change: Callable[[Config], None]) -> None:
    cfg = Config.fromfile('teacher.py')
    change(cfg)
    cfg.dump('teacher.py')


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (lambda: Path('teacher.pth').write_bytes(b'no weights'), "CHECKPOINT: cannot read 'teach"),
        (lambda: Path('teacher.pth').unlink(), "CHECKPOINT: there is no file 'teacher.pth'"),
        (
            lambda: helpers.save_teacher(Path('teacher.pth'), helpers.detector_config()),
            "'teacher.pth' does not fit CONFIG; 4 weights of another shape",
        ),
        (lambda: rewrite(lambda cfg: cfg.pop('model')), "has no 'model'"),
        (
            lambda: rewrite(lambda cfg: cfg.model.update(type='Faster')),
            'CONFIG: mmdet cannot build this detector',
        ),
        (
            lambda: rewrite(
                lambda cfg: cfg.model.roi_head.bbox_head.loss_cls.update(use_sigmoid=True)
            ),
            'cannot read the class logits of a FasterRCNN with StandardRoIHead',
        ),
        (
            lambda: Path('data/mini/annotations/calibration.json').unlink(),
            'there is no annotation file',
        ),
    ],
)
def test_mistakes_are_one_sentence(
    tool: ModuleType,
    files: SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable,
    message: str,
) -> None:
    spoil()
    expect_error(tool, [*files.args, *files.data], message, capsys)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--images=data/mini/val'], "12 of 12 images of .* are not in 'data/mini/val'"),
        (['--out=teacher.py'], 'File exists'),
    ],
)
def test_wrong_arguments_are_one_sentence(
    tool: ModuleType,
    files: SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    expect_error(tool, [*files.args, *files.data, *arguments], message, capsys)


def expect_error(
    tool: ModuleType,
    arguments: Sequence[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert tool.main(list(arguments)) == 1
    lines = capsys.readouterr().err.strip().split('\n')
    assert re.search(message, lines[-1]), lines
    assert lines[-1].startswith('error: ')
