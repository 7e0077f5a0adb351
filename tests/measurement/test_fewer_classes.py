"""Calibration of a teacher on data that label only some of its classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dense_cases
import helpers
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from scipy.optimize import minimize_scalar
from torch import Tensor

from calkd_det import config_path
from calkd_det.calibration import PlattScaling, TemperatureAccumulator, TemperatureScaling
from calkd_det.commands.calibrate import calibrate
from calkd_det.datasets.mini import write_mini_dataset
from calkd_det.errors import ConfigError
from calkd_det.measurement.calibration_report import to_json, to_markdown, write_report
from calkd_det.measurement.collect import SampleStore, collect_samples
from calkd_det.measurement.fewer_classes import labelled_classes, map_to_labelled
from calkd_det.measurement.held_out import read_held_out
from calkd_det.teachers.class_map import ClassMap

NAMES = tuple(map(str, range(10)))
TEACHERS = {
    'softmax': 'mini/faster-rcnn_r18-teacher_fpn_12e_mini.py',
    'sigmoid': 'mini/retinanet_r18-teacher_fpn_12e_mini.py',
}
LABELLED = [7, 2, 3, 0, 9]  # in the order of the file


def test_the_likelihood_of_merged_classes_is_that_of_the_map() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2000, 7, generator=generator, dtype=torch.float64)
    class_map = ClassMap([4, 1], 6)
    # Labels that are right at T = 1.7 for the student's two classes and the background.
    probs = class_map(logits / 1.7).softmax(dim=1)
    labels = torch.multinomial(probs, 1, generator=generator).squeeze(1)
    accumulator = TemperatureAccumulator(background=class_map.background)
    for rows in torch.arange(2000).split(600):
        accumulator.update(logits[rows], class_map.label_columns[labels[rows]], groups=rows % 40)
    fit = accumulator.compute()

    def nll(temperature: float) -> float:
        return float(F.cross_entropy(class_map(logits / temperature), labels))

    found = minimize_scalar(nll, bounds=(0.5, 5), method='bounded', options={'xatol': 1e-9})
    assert fit.temperature == pytest.approx(found.x, abs=1e-4)
    assert fit.nll_before == pytest.approx(nll(1), abs=1e-9)
    assert fit.nll_after == pytest.approx(found.fun, abs=1e-6)
    assert fit.interval[0] < 1.7 < fit.interval[1]
    # Merging the logits before the division is another model.
    other = minimize_scalar(
        lambda t: float(F.cross_entropy(class_map(logits) / t, labels)),
        bounds=(0.5, 5),
        method='bounded',
    )
    assert abs(other.x - fit.temperature) > 0.01


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mini data, and a file that labels five of its ten classes, in another order."""
    folder = tmp_path_factory.mktemp('few')
    write_mini_dataset(
        folder, num_images=dict(train=6, calibration=8, val=6), image_size=96, seed=3
    )
    for split in ('calibration', 'train'):
        content = json.loads((folder / f'annotations/{split}.json').read_text())
        whole = content['categories']
        content['categories'] = [whole[index] for index in LABELLED]
        ids = {category['id'] for category in content['categories']}
        content['annotations'] = [a for a in content['annotations'] if a['category_id'] in ids]
        (folder / f'{split}-few.json').write_text(json.dumps(content))
    return folder


@pytest.fixture(scope='module', params=['softmax', 'sigmoid'])
def teacher(request: pytest.FixtureRequest, root: Path) -> tuple[str, Config, Path]:
    """A teacher of ten classes: its activation, config and weights."""
    cfg = Config.fromfile(config_path(TEACHERS[request.param]))
    if request.param == 'softmax':
        cfg.model = helpers.detector_config(num_classes=10)
    else:
        cfg.model = dense_cases.detector_config('RetinaNet')
        cfg.model.bbox_head.num_classes = 10
    path = root / f'{request.param}.pth'
    if request.param == 'softmax':
        helpers.save_teacher(path, cfg.model, classes=cfg.classes)
        # Weights that were never trained are best at T = infinity, but for a guess: background.
        content = torch.load(path)
        content['state_dict']['roi_head.bbox_head.fc_cls.weight'].mul_(0.1)
        content['state_dict']['roi_head.bbox_head.fc_cls.bias'].mul_(0.1)[-1] += 3
        torch.save(content, path)
    else:
        detector = helpers.build(cfg.model)
        detector.init_weights()
        detector.bbox_head.retina_cls.weight.data.mul_(30)  # scores that differ
        meta = dict(dataset_meta=dict(classes=cfg.classes))
        torch.save(dict(meta=meta, state_dict=detector.state_dict()), path)
    return request.param, cfg, path


@pytest.fixture
def few_background(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ('NUM_HARDEST', 'NUM_DRAWN'):
        monkeypatch.setattr(f'calkd_det.taps.dense_samples.{name}', 40)


def everything(store: SampleStore) -> tuple[Tensor, ...]:
    return tuple(torch.cat(parts) for parts in zip(*store.chunks()))


def run(teacher: tuple[str, Config, Path], root: Path, **changes: Any) -> Any:
    options = dict(
        ann_file=root / 'calibration-few.json',
        images=root / 'calibration',
        own_training=None,
        out=root / 'out',
        device=torch.device('cpu'),
        batch_size=4,
        num_workers=0,
        max_images=None,
        seed=0,
    )
    return calibrate(teacher[1], 'teacher.py', str(teacher[2]), **{**options, **changes})


def test_temperature_and_figures_are_those_of_the_training(
    teacher: tuple[str, Config, Path], root: Path, few_background: None, tmp_path: Path
) -> None:
    activation, cfg, path = teacher
    report = run(teacher, root)
    columns = torch.tensor(LABELLED)
    class_map = ClassMap(LABELLED, 10, activation)

    # All ten categories with objects of five: the same images with the teacher's own labels.
    content = json.loads((root / 'calibration-few.json').read_text())
    whole = json.loads((root / 'annotations/calibration.json').read_text())
    (tmp_path / 'all.json').write_text(json.dumps({**content, 'categories': whole['categories']}))
    data = read_held_out(cfg, tmp_path / 'all.json', root / 'calibration', num_classes=10)
    detector = helpers.build(cfg.model)
    detector.load_state_dict(torch.load(path)['state_dict'])
    store = collect_samples(detector, data.dataset, batch_size=4)['distillation']
    logits, labels, weights, _ = everything(store)
    assert not torch.isin(labels, torch.tensor([1, 4, 5, 6, 8])).any()
    student = torch.full_like(labels, 5)
    for own, column in enumerate(columns):
        student[labels == column] = own

    def nll(temperature: float) -> float:
        mapped = class_map(logits.double() / temperature)
        if activation == 'softmax':
            losses = F.cross_entropy(mapped, student, reduction='none')
        else:
            targets = F.one_hot(student, 6)[:, :5].double()
            losses = F.binary_cross_entropy_with_logits(mapped, targets, reduction='none').sum(1)
        return float((losses * weights).sum() / weights.sum())

    result = report.sets['distillation']
    assert result.num_foreground == int((student < 5).sum()) > 10
    assert result.before.values['nll'] == pytest.approx(nll(1), rel=1e-6)
    found = minimize_scalar(nll, bounds=(0.05, 20), method='bounded', options={'xatol': 1e-9})
    assert report.fit.nll_after == pytest.approx(found.fun, rel=1e-4)
    assert result.after.values['nll'] == pytest.approx(nll(report.fit.temperature), rel=1e-6)
    names = [result.name for result in report.comparison.results]
    assert names[:2] == ['none, T = 1', 'TemperatureScaling']
    assert len(names) == (2 if activation == 'softmax' else 6)

    content = to_json(report)
    assert len(content['teacher']['classes']) == 10
    assert content['data']['classes'] == [cfg.classes[index] for index in LABELLED]
    text = to_markdown(report, Path('out'))
    assert 'The images label 5 of the 10 classes of the teacher' in text


@pytest.mark.usefixtures('undrawn')
def test_parameters_of_each_class_are_the_teachers(
    teacher: tuple[str, Config, Path], root: Path, few_background: None, tmp_path: Path
) -> None:
    report = run(teacher, root)
    file = write_report(report, tmp_path)[0]
    TemperatureScaling(temperature=str(file)).prepare()
    if teacher[0] == 'softmax':
        return
    content = json.loads(file.read_text())
    found = content['class_platt_scaling']
    assert len(found['a']) == len(found['b']) == 10
    others = [found['b'][index] for index in (1, 4, 5, 6, 8)]
    assert others == pytest.approx([content['platt_scaling']['b']] * 5)
    assert len(set(found['b'])) == 6
    scaling = PlattScaling(parameters=str(file), per_class=True)
    scaling.prepare()
    logits = torch.randn(4, 10)
    expected = logits * torch.tensor(found['a']) + torch.tensor(found['b'])
    torch.testing.assert_close(scaling(logits), expected)
    # So that they are the same before the map of classes and after it.
    class_map = ClassMap(LABELLED, 10, 'sigmoid')
    torch.testing.assert_close(class_map(scaling(logits)), expected[:, LABELLED])


def test_the_teachers_own_training_images_are_compared(
    teacher: tuple[str, Config, Path], root: Path, few_background: None, tmp_path: Path
) -> None:
    own = (root / 'train-few.json', root / 'train')
    report = run(teacher, root, own_training=own)
    alone = run(teacher, root)
    assert report.fit.temperature == alone.fit.temperature
    content = to_json(report)
    assert content['comparison']['own_training']['temperature'] != report.fit.temperature
    values = content['own_training_at_held_out_temperature']
    text = to_markdown(report, tmp_path)
    assert "## For comparison: the teacher's own training images" in text
    assert f'mean confidence is {100 * values["mean_confidence"]:.1f} %' in text
    assert f'the accuracy of {100 * values["mean_accuracy"]:.1f} %' in text
    ratio = content['comparison']['own_training']['temperature'] / report.fit.temperature
    assert f'{ratio:.2f} times the T of held-out images' in text
    assert 'own training images' not in to_markdown(alone, tmp_path)


def test_held_out_images_are_no_training_images(
    teacher: tuple[str, Config, Path], root: Path
) -> None:
    own = (root / 'calibration-few.json', root / 'calibration')
    with pytest.raises(ConfigError, match='--train-ann is the annotation file of the held-out'):
        run(teacher, root, own_training=own)
    whole = (root / 'annotations/train.json', root / 'train')
    with pytest.raises(ConfigError, match='do not have the same categories'):
        run(teacher, root, own_training=whole)


def write_categories(path: Path, *names: str) -> Path:
    categories = [{'id': i, 'name': name} for i, name in enumerate(names)]
    content = {'images': [{'id': 1}], 'annotations': [{'id': 1}], 'categories': categories}
    path.write_text(json.dumps(content))
    return path


def test_labelled_classes(tmp_path: Path) -> None:
    path = tmp_path / 'some.json'
    teacher = ('cat', 'dog', 'bird')
    assert labelled_classes(write_categories(path, 'bird', 'cat'), teacher) == ('bird', 'cat')
    # A file with all of them and more is read in the teacher's order, as before.
    assert labelled_classes(write_categories(path, 'cow', *teacher), teacher) == teacher
    with pytest.raises(ConfigError, match=r"'bird', but has others, .* 'birb'"):
        labelled_classes(write_categories(path, 'cat', 'dog', 'birb'), teacher)
    assert map_to_labelled(teacher, teacher, 3, 'sigmoid') is None
    with pytest.raises(ConfigError, match='the teacher has 4 classes'):
        map_to_labelled(('cat',), teacher, 4, 'sigmoid')
