"""The calibration tool and hook on detection transformers: queries with an object, and the rest."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType, SimpleNamespace

import helpers
import mask_query_cases
import pytest
import query_cases
import torch
from helpers import CLASSES
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from pairs import save
from query_cases import distilled

from calkd_det import config_path
from calkd_det.calibration import TemperatureScaling
from calkd_det.calibration.reliability import reliability_from_confidences
from calkd_det.calibration.temperature import fit_temperature
from calkd_det.datasets.mini import write_mini_dataset
from calkd_det.detectors.diagnosis import predict
from calkd_det.hooks import TeacherCalibrationHook
from calkd_det.knowledge import HeadSamples
from calkd_det.measurement.collect import collect_samples
from calkd_det.measurement.held_out import read_held_out

TEACHER = 'mini/retinanet_r18-teacher_fpn_12e_mini.py'
DATA = ['--ann=data/mini/annotations/calibration.json', '--images=data/mini/calibration']
PARTS = ('matched', 'rest')


@pytest.fixture(scope='module')
def tool() -> ModuleType:
    return helpers.load_tool('calibrate_teacher')


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('data')
    write_mini_dataset(
        folder / 'data/mini', num_images=dict(train=1, calibration=6, val=1), image_size=96, seed=2
    )
    return folder


def write_teacher(name: str) -> tuple[Config, torch.nn.Module]:
    """The config and the weights of a small detector of digits, in the current folder."""
    cfg = Config.fromfile(config_path(TEACHER))
    cfg.model = query_cases.detector_config(name)
    cfg.model.bbox_head.num_classes = 10
    cfg.dump('teacher.py')
    detector = helpers.build(cfg.model)
    save(detector, Path('teacher.pth'), cfg.classes)
    return cfg, detector


@pytest.mark.parametrize('name', ['DETR', 'DINO'])
def test_the_tool_fits_all_queries_and_shows_both_parts(
    name: str,
    tool: ModuleType,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    cfg, detector = write_teacher(name)
    out = Path('calibration', name.replace(' ', '-'))
    args = ['teacher.py', 'teacher.pth', '--workers=0', '--device=cpu', f'--out={out}', *DATA]
    assert tool.main(args) == 0
    content = json.loads((out / 'temperature.json').read_text())
    assert tuple(content['comparison']) == PARTS
    matched, rest = (content['comparison'][part] for part in PARTS)
    assert matched['num_samples'] == matched['num_foreground'] == content['num_foreground'] > 0
    assert rest['num_foreground'] == 0
    assert matched['num_samples'] + rest['num_samples'] == content['num_samples']
    assert TemperatureScaling(out / 'temperature.json').temperature == content['temperature']

    paths = (Path(arg.split('=')[1]) for arg in DATA)
    data = read_held_out(cfg, *paths, num_classes=10, classes=cfg.classes)
    stores = collect_samples(detector, data.dataset, batch_size=4)
    for part, found in (('distillation', content), ('matched', matched), ('rest', rest)):
        logits, labels, weights, groups = stores[part].evenly_spaced_images(10**9)
        fit = fit_temperature(
            logits, labels, weights=weights, groups=groups, activation=stores[part].activation
        )
        assert found['temperature'] == pytest.approx(fit.temperature, rel=1e-3)

    report = (out / 'report.md').read_text()
    headings = [line for line in report.splitlines() if line.startswith('## ')]
    assert headings[:3] == [
        '## Samples of distillation',
        '## For comparison: queries with an object',
        '## For comparison: queries without an object',
    ]
    assert 'Distillation compares these, and T above is theirs.' in report
    assert report.count('These are among the samples above.') == 2
    assert 'no part in T' not in report
    assert ('is a bound of the search' in report) == (matched['at_bound'] or rest['at_bound'])
    for part in ('distillation', *PARTS):
        assert (out / f'reliability_{part}.png').is_file()


@pytest.mark.usefixtures('undrawn')
def test_a_part_whose_temperature_stops_at_a_bound_is_no_warning(
    tool: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of queries without an object all sigmoid scores are below 1/2, so no T is too small."""
    monkeypatch.chdir(folder)
    _, detector = write_teacher('DINO')
    with torch.no_grad():
        for branch in detector.bbox_head.cls_branches:
            branch.bias.fill_(-5)
    save(detector, Path('teacher.pth'), ())
    args = ['teacher.py', 'teacher.pth', '--workers=0', '--device=cpu', '--out=low', *DATA]
    assert tool.main(args) == 0
    content = json.loads(Path('low/temperature.json').read_text())
    assert content['comparison']['rest']['at_bound']
    assert not [text for text in content['warnings'] if 'without an object' in text]
    assert 'T = 0.05 is a bound of the search and no minimum' in Path('low/report.md').read_text()


def test_a_detector_of_masks_needs_masks(
    tool: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    cfg = Config.fromfile(config_path(TEACHER))
    cfg.model = mask_query_cases.detector_config('Mask2Former')
    cfg.model.panoptic_head.num_things_classes = 10
    cfg.model.panoptic_head.loss_cls.class_weight = [1.0] * 10 + [0.1]
    cfg.model.panoptic_fusion_head.num_things_classes = 10
    cfg.dump('masks.py')
    save(helpers.build(cfg.model), Path('masks.pth'), cfg.classes)
    args = ['masks.py', 'masks.pth', '--workers=0', '--device=cpu', '--out=masks', DATA[1]]
    assert tool.main([*args, DATA[0]]) == 1  # boxes alone

    path = Path('data/mini/annotations/calibration.json')
    content = json.loads(path.read_text())
    for each in content['annotations']:
        x, y, w, h = each['bbox']
        each['segmentation'] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    Path('with_masks.json').write_text(json.dumps(content))
    assert tool.main([*args, '--ann=with_masks.json']) == 0
    found = json.loads(Path('masks/temperature.json').read_text())
    parts = [found['comparison'][part]['num_samples'] for part in PARTS]
    assert parts[0] == found['num_foreground'] == len(content['annotations'])
    assert sum(parts) == found['num_samples'] == 6 * 12


@pytest.mark.parametrize('name', ['DETR', 'DINO'])
def test_the_hook_logs_queries_with_an_object_and_all(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = query_cases.detector_config(name)
    save(helpers.build(cfg, seed=1), tmp_path / 'teacher.pth', CLASSES)
    options = dict(denoising=True) if name == 'DINO' else {}
    detector = distilled(cfg, cfg, tmp_path / 'teacher.pth', **options)
    runner = SimpleNamespace(
        model=detector,
        iter=0,
        train_dataloader=range(2),
        message_hub=MessageHub.get_instance(f'queries_{name}'),
        logger=MMLogger.get_instance('queries'),
    )
    logged: list[str] = []
    monkeypatch.setattr(runner.logger, 'info', logged.append)
    hook = TeacherCalibrationHook()
    hook.before_train(runner)
    recorded: list[HeadSamples] = []
    detector.teacher.network.register_forward_hook(
        lambda network, args, answers: recorded.append((args[1][0], answers[0].logits))
    )
    for step in range(2):
        helpers.loss(detector, helpers.batch(seed=step))
        hook.after_train_iter(runner, step)
    activation = recorded[0][0].activation
    labels = torch.cat([samples.labels for samples, _ in recorded])
    logits = torch.cat([logits for _, logits in recorded])
    matched = labels < len(CLASSES)
    assert int(matched.sum()) == 2 * 2 * 3
    confidence, prediction = predict(logits, activation)
    hit = (prediction == labels) & (matched if activation == 'sigmoid' else True)
    for name, rows in (('teacher_ece', matched), ('teacher_ece_all', matched | ~matched)):
        expected = reliability_from_confidences(confidence[rows], hit[rows], n_bins=15)
        value = runner.message_hub.get_scalar(f'train/{name}').current()
        assert value == pytest.approx(expected.ece, abs=1e-6)
    assert '12 foreground samples' in logged[-2]
    assert '48 samples, foreground and background,' in logged[-1]
