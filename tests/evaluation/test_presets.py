"""Presets and LRP-optimal thresholds against plain float64 loops from the papers' definitions."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from plain_calibration import (
    CLASSES,
    annotation_file,
    detections,
    evaluate,
    plain_ece,
    plain_laace,
    plain_laece,
    plain_lrp,
    plain_matching,
    plain_optimal_threshold,
    random_case,
)

from calkd_det.errors import ConfigError
from calkd_det.evaluation import DetectionCalibration
from calkd_det.evaluation.matching import ImageDetections

Thresholds = list[float | None]


def optimal_thresholds(
    annotations: list[dict], images: list[ImageDetections], iou_thr: float
) -> Thresholds:
    return [
        plain_optimal_threshold(annotations, images, label, iou_thr)
        for label in range(len(CLASSES))
    ]


def above(images: list[ImageDetections], thresholds: Thresholds) -> list[ImageDetections]:
    kept = []
    for image in images:
        rows = [
            thresholds[label] is None or float(score) >= thresholds[label]
            for score, label in zip(image.scores, image.labels)
        ]
        arrays = (image.boxes[rows], image.scores[rows], image.labels[rows])
        kept.append(ImageDetections(image.image_id, *arrays))
    return kept


def mean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def plain_figures(
    annotations: list[dict],
    images: list[ImageDetections],
    thresholds: Thresholds,
    *,
    iou_thr: float,
    num_bins: int,
    lrp_iou_thr: float,
) -> dict[str, float]:
    """Return all figures but the optimal LRP errors of boxes above thresholds."""
    kept = above(images, thresholds)
    found = plain_matching(annotations, kept, iou_thr)
    overlapping = plain_matching(annotations, kept, 0.0)
    scope, lrp_scope = f'IoU{100 * iou_thr:g}', f'IoU{100 * lrp_iou_thr:g}' if lrp_iou_thr else '0'
    figures = {'num_detections': len(found)}
    if found:
        over, under = plain_ece([(s, float(iou > 0)) for s, _, iou in found], num_bins)
        figures |= {f'D-ECE_{scope}': over + under, f'LaECE_{scope}': plain_laece(found, 25)}
    if overlapping:
        figures |= {'LaECE_0': plain_laece(overlapping, 25), 'LaACE_0': plain_laace(overlapping)}
    errors = [plain_lrp(annotations, kept, label, lrp_iou_thr, 0.0) for label in range(3)]
    parts = zip(*(e or [math.nan] * 4 for e in errors))
    names = (f'{name}_{lrp_scope}' for name in ('LRP', 'LRP_loc', 'LRP_FP', 'LRP_FN'))
    return figures | {name: mean(list(part)) for name, part in zip(names, parts)}


@pytest.mark.parametrize(
    ('options', 'iou_thr', 'num_bins', 'lrp_iou_thr', 'score_thr'),
    [
        (dict(preset='kuppers2020'), 0.6, 20, 0.6, 0.3),
        (dict(preset='kuppers2020', iou_thr=0.75), 0.75, 20, 0.75, 0.3),
        (dict(preset='oksuz2023'), 0.1, 15, 0.1, 'lrp'),
        (dict(preset='kuzucu2024'), 0.5, 10, 0.0, 'lrp'),
        (dict(score_thr='lrp'), 0.5, 15, 0.5, 'lrp'),
    ],
)
def test_presets_agree_with_the_definitions(
    tmp_path: Path,
    options: dict[str, Any],
    iou_thr: float,
    num_bins: int,
    lrp_iou_thr: float,
    score_thr: float | str,
) -> None:
    num_boxes = 0
    for seed in range(24):
        annotations, images = random_case(seed)
        path = annotation_file(tmp_path / 'case.json', annotations, len(images))
        figures = evaluate(DetectionCalibration(path, **options), images)
        optimal = optimal_thresholds(annotations, images, lrp_iou_thr)
        expected = plain_figures(
            annotations,
            images,
            optimal if score_thr == 'lrp' else [score_thr] * 3,
            iou_thr=iou_thr,
            num_bins=num_bins,
            lrp_iou_thr=lrp_iou_thr,
        )
        for name, value in expected.items():
            found = figures[f'calibration/{name}']
            assert found == pytest.approx(value, abs=1e-6, nan_ok=True), (seed, name)
        if score_thr == 'lrp':
            for name in [name for name in expected if name.startswith('LRP')]:
                found = figures[f'calibration/o{name}']
                # Boxes of a class without a threshold are kept, and count as false positives.
                if not name.startswith('LRP_FP'):
                    assert found == pytest.approx(expected[name], abs=1e-6, nan_ok=True)
        num_boxes += expected['num_detections']
    assert num_boxes > 100


def test_thresholds_of_other_images(tmp_path: Path) -> None:
    num_boxes = 0
    for seed in range(16):
        paths, cases = [], []
        for part, case in (('minival', random_case(seed)), ('minitest', random_case(seed + 40))):
            cases.append(case)
            paths.append(annotation_file(tmp_path / f'{part}.json', case[0], len(case[1])))
        prefix = str(tmp_path / 'out' / 'minival')
        evaluate(DetectionCalibration(paths[0], iou_thr=0.5, outfile_prefix=prefix), cases[0][1])
        metric = DetectionCalibration(
            paths[1], score_thr='lrp', lrp_from=f'{prefix}.calibration.json'
        )
        figures = evaluate(metric, cases[1][1])
        thresholds = optimal_thresholds(*cases[0], 0.5)
        expected = plain_figures(*cases[1], thresholds, iou_thr=0.5, num_bins=15, lrp_iou_thr=0.5)
        for name, value in expected.items():
            found = figures[f'calibration/{name}']
            assert found == pytest.approx(value, abs=1e-6, nan_ok=True), (seed, name)
        num_boxes += expected['num_detections']
    assert num_boxes > 50


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that the evaluator logs."""
    logged: list[str] = []
    monkeypatch.setattr(
        'calkd_det.evaluation.detection_calibration.print_log',
        lambda text, **_: logged.append(text),
    )
    return logged


@pytest.fixture
def one_cat(tmp_path: Path) -> str:
    annotations = [dict(image_id=0, label=0, bbox=[0, 0, 10, 10])]
    return annotation_file(tmp_path / 'cat.json', annotations, 1)


IMAGE = detections([(0, 0, 10, 10), (0, 0, 9, 10), (30, 0, 5, 5)], [0.75, 0.5, 0.25], [0, 0, 1])


def test_files_and_table(one_cat: str, tmp_path: Path, messages: list[str]) -> None:
    prefix = str(tmp_path / 'new' / 'student')
    metric = DetectionCalibration(
        one_cat, score_thr='lrp', classwise=True, outfile_prefix=prefix, prefix='final/boxes'
    )
    figures = evaluate(metric, [IMAGE])
    content = json.loads(Path(f'{prefix}.final_boxes.json').read_text())
    written = {f'final/boxes/{name}': value for name, value in content['figures'].items()}
    assert written == figures
    assert content['score_thresholds'] == {'cat': 0.75, 'dog': None, 'bird': None}
    assert content['settings'] == dict(
        preset=None, iou_thr=0.5, num_bins=15, score_thr='lrp', lrp_iou_thr=0.5
    )
    assert (
        sum(row['count'] for row in content['bins']) == figures['final/boxes/num_detections'] == 2
    )
    cat, dog, bird = content['classes']
    assert (cat['class'], cat['num_objects'], cat['num_detections']) == ('cat', 1, 1)
    assert cat['score_thr'] == 0.75
    assert cat['D-ECE_IoU50'] == cat['LaECE_0'] == 0.25
    assert cat['LRP_IoU50'] == cat['oLRP_IoU50'] == 0
    assert (dog['num_detections'], dog['LaECE_IoU50'], dog['LRP_IoU50']) == (1, 0.25, None)
    assert (bird['num_detections'], bird['LaECE_IoU50']) == (0, None)
    with Path(f'{prefix}.final_boxes.csv').open(encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    assert [
        {k: '' if v is None else str(v) for k, v in c.items()} for c in content['classes']
    ] == rows
    table = next(text for text in messages if '| cat ' in text)
    assert '0.750' in table
    assert any(text.startswith('wrote ') for text in messages)


def test_the_log_tells_how_thresholds_were_chosen(
    one_cat: str, tmp_path: Path, messages: list[str]
) -> None:
    evaluate(DetectionCalibration(one_cat, preset='kuzucu2024'), [IMAGE])
    assert 'least LRP error at any overlap and was chosen on these images' in messages[0]
    assert '2 classes have no threshold' in messages[0]
    assert 'preset kuzucu2024' in messages[0]
    path = tmp_path / 'minival.json'
    path.write_text(
        json.dumps({'lrp_iou_thr': 0.1, 'score_thresholds': dict.fromkeys(CLASSES, 0.9)})
    )
    evaluate(DetectionCalibration(one_cat, preset='oksuz2023', lrp_from=str(path)), [IMAGE])
    assert 'There is no detection' in messages[-1]
    assert f"at IoU >= 0.1 and was chosen by '{path}'" in messages[-1]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(preset='kuppers'), r"no preset 'kuppers'; did you mean 'kuppers2020'"),
        (dict(preset=['kuppers2020']), 'no preset'),
        (
            dict(preset='oksuz2023', iou_thr=0.5),
            r"val_evaluator\.iou_thr .* is 0\.5, but preset='oksuz2023' means 0\.1: leave out one",
        ),
        (dict(preset='kuppers2020', iou_thr=0.5), r'means 0\.6 or 0\.75'),
        (dict(preset='kuppers2020', num_bins=10), r'num_bins .* is 10, .* means 20'),
        (dict(preset='kuppers2020', score_thr='lrp'), r"score_thr .* is 'lrp', .* means 0\.3"),
        (dict(preset='oksuz2023', score_thr=0.3), r"score_thr .* is 0\.3, .* means 'lrp'"),
        (dict(preset='oksuz2023', lrp_iou_thr=0.5), r'lrp_iou_thr .* means 0\.1'),
        (dict(preset='kuzucu2024', lrp_iou_thr=0.5), r'lrp_iou_thr .* means 0\.0'),
        (dict(preset='kuzucu2024', num_bins=15), r'num_bins .* means 10'),
        (dict(score_thr='LRP'), r"score_thr .* a number from 0 to 1 or 'lrp', but is 'LRP'"),
        (dict(lrp_iou_thr=2), r'lrp_iou_thr .* at most 1, but is 2'),
        (dict(lrp_from='minival.json'), r"lrp_from .* is for score_thr='lrp', but score_thr is 0"),
        (dict(score_thr='lrp', lrp_from=7), r'lrp_from .* must be the path'),
        (dict(score_thr='lrp', lrp_from='none.json'), r"no file 'none\.json'; write it by"),
    ],
)
def test_options_that_do_not_fit(one_cat: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DetectionCalibration(one_cat, **options)


@pytest.mark.parametrize(
    'options',
    [
        dict(preset='kuppers2020', iou_thr=0.6, num_bins=20, score_thr=0.3),
        dict(preset='oksuz2023', iou_thr=0.1, num_bins=10, score_thr='lrp'),
        dict(preset='kuzucu2024', lrp_iou_thr=0),
    ],
    ids=['kuppers2020', 'oksuz2023', 'kuzucu2024'],
)
def test_options_that_agree_with_the_preset(one_cat: str, options: dict[str, Any]) -> None:
    settings = DetectionCalibration(one_cat, **options).settings
    assert all(getattr(settings, name) == value for name, value in options.items())


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('{', 'cannot read'),
        ('[]', "has no thresholds under 'score_thresholds'; write it by"),
        ('{"score_thresholds": {"cat": "high"}}', 'has no thresholds'),
        ('{"score_thresholds": {"cat": 0.5}, "lrp_iou_thr": 0.1}', r'at IoU 0\.1, but .* is 0\.5'),
    ],
    ids=['no JSON', 'a list', 'words', 'another IoU'],
)
def test_files_without_fitting_thresholds(
    one_cat: str, tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / 'minival.json'
    path.write_text(content)
    with pytest.raises(ConfigError, match=rf'(?s)lrp_from .*{message}'):
        DetectionCalibration(one_cat, score_thr='lrp', lrp_from=path)


def test_thresholds_that_lack_a_class(one_cat: str, tmp_path: Path) -> None:
    path = tmp_path / 'minival.json'
    path.write_text('{"score_thresholds": {"cat": 0.5, "dog": null}, "lrp_iou_thr": 0.5}')
    metric = DetectionCalibration(one_cat, score_thr='lrp', lrp_from=str(path))
    with pytest.raises(ConfigError, match=r"lacks the class 'bird' .* it has: cat, dog"):
        evaluate(metric, [IMAGE])
