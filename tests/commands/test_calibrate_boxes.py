"""Calibration of final boxes: from the command to a test run that applies it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.apis import inference_detector
from mmdet.models import BaseDetector
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.structures import InstanceData

from calkd_cli import main
from calkd_det import config_path
from calkd_det.datasets.mini import write_mini_dataset
from calkd_det.errors import ConfigError
from calkd_det.evaluation import DetectionCalibration, calibrate_boxes
from calkd_det.evaluation.box_calibration_hook import read_box_calibration
from calkd_det.measurement.measured_detector import MeasuredDetector

CONFIG = 'mini/faster-rcnn_r18-student_fpn_12e_mini.py'
NUM_IMAGES = 40
COMMAND = [
    'calibrate', 'detector.py', 'detector.pth', '--ann=data/mini/annotations/calibration.json',
    '--images=data/mini/calibration', '--target=boxes', '--workers=0', '--device=cpu', '--out=out',
]  # fmt: skip
HOOK = {
    'default_hooks.boxes.type': 'calkd_det.evaluation.BoxCalibrationHook',
    'default_hooks.boxes.parameters': 'out/boxes.json',
}


def read_truth() -> dict[str, list[tuple[list[float], int]]]:
    """Return boxes (x, y, w, h) and labels of the objects of each image of both splits, by path."""
    truth: dict[str, list[tuple[list[float], int]]] = {}
    for split in ('calibration', 'val'):
        content = json.loads(Path(f'data/mini/annotations/{split}.json').read_text())
        labels = {category['id']: i for i, category in enumerate(content['categories'])}
        path_of = {i['id']: f'data/mini/{split}/{i["file_name"]}' for i in content['images']}
        truth |= {path: [] for path in path_of.values()}
        for item in content['annotations']:
            label = labels[item['category_id']]
            truth[path_of[item['image_id']]].append((item['bbox'], label))
    return truth


@MODELS.register_module()
class MadeUpDetector(BaseDetector):
    """A detector whose boxes are near the objects of ``truth`` and whose scores are too high.

    The score of a box with its object is right with the probability sigmoid(a · logit(score) + b)
    for another a and b in each class.
    """

    truth: dict[str, list[tuple[list[float], int]]]

    def __init__(self, **options: Any) -> None:
        super().__init__(
            data_preprocessor=dict(type='DetDataPreprocessor', mean=[0] * 3, std=[255] * 3)
        )
        self.scale = torch.nn.Parameter(torch.ones(1))

    def predict(self, inputs: Any, samples: list[DetDataSample], **_: Any) -> list[DetDataSample]:
        for sample in samples:
            path = '/'.join(Path(sample.img_path).parts[-4:])
            rng = np.random.default_rng(int(Path(path).stem.split('_')[-1]))
            boxes, scores, labels = np.zeros((0, 4)), [], []
            for (x, y, w, h), label in 8 * self.truth[path]:
                score = rng.beta(1.5, 1)
                logit = np.log(score / (1 - score))
                right = rng.random() < 1 / (1 + np.exp(1 + 0.1 * label - 0.7 * logit))
                offset = rng.normal(0, 0.05, 2) * (w, h) if right else rng.normal(0, 2, 2) * (w, h)
                corner = np.array([x, y]) + offset
                boxes = np.vstack([boxes, [*corner, *(corner + (w, h))]])
                scores.append(score)
                labels.append(label)
            sample.pred_instances = InstanceData(
                bboxes=torch.tensor(boxes).float(),
                scores=torch.tensor(scores).float(),
                labels=torch.tensor(labels, dtype=torch.long),
            )
        return samples

    def loss(self, *_: Any) -> None: ...

    def _forward(self, *_: Any) -> None: ...

    def extract_feat(self, *_: Any) -> None: ...


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small images, annotations of both splits, and the config of the detector."""
    path = tmp_path_factory.mktemp('boxes')
    write_mini_dataset(
        path / 'data/mini',
        num_images=dict(train=2, calibration=NUM_IMAGES, val=NUM_IMAGES),
        image_size=96,
    )
    whole = Config.fromfile(config_path(CONFIG))
    loader = whole.test_dataloader
    loader.update(num_workers=0, persistent_workers=False, batch_size=8)
    ann_file = 'data/mini/annotations/val.json'
    # Few keys, because mmengine formats the whole config in each run.
    cfg = Config(
        dict(
            default_scope='mmdet',
            work_dir='run',
            model=dict(type='MadeUpDetector'),
            test_cfg=dict(type='TestLoop'),
            test_dataloader=loader,
            test_evaluator=[
                dict(type='UnroundedCocoMetric', ann_file=ann_file),
                dict(type='DetectionCalibration', ann_file=ann_file),
            ],
            default_hooks=dict(timer=dict(type='IterTimerHook')),
        )
    )
    cfg.dump(path / 'detector.py')
    return path


def enter(folder: Path, patch: pytest.MonkeyPatch) -> Config:
    """Go to the folder, put the detector in place, and return its config."""
    patch.chdir(folder)
    patch.setattr('mmengine.runner.runner.collect_env', dict)  # starts compilers
    patch.setattr(DetectionCalibration, '_publish_diagram', lambda *_: None)
    MadeUpDetector.truth = read_truth()
    cfg = Config.fromfile('detector.py')
    classes = tuple(cfg.test_dataloader.dataset.metainfo.classes)
    patch.setattr(
        'calkd_det.commands.calibrate_boxes.build_measured_detector',
        lambda *_: MeasuredDetector(MadeUpDetector(), len(classes), classes),
    )
    return cfg


def figures_of_run(cfg: Config, options: dict[str, Any]) -> dict[str, float]:
    changed = cfg.copy()
    changed.merge_from_dict(options)
    return Runner.from_cfg(changed).test()


@pytest.fixture
def cfg(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The config of the detector, in its folder."""
    return enter(folder, monkeypatch)


@pytest.fixture(scope='module')
def before(folder: Path) -> dict[str, float]:
    """Figures of a test of the detector as it is."""
    with pytest.MonkeyPatch.context() as patch:
        return figures_of_run(enter(folder, patch), {})


@pytest.mark.parametrize(
    ('options', 'falls'),
    [
        ([], ('LaECE_0', 'LaECE_IoU50', 'LaACE_0')),
        (['--fit-to=precision'], ('D-ECE_IoU50', 'D-ECE_over_IoU50')),
        (['--method=isotonic'], ('LaECE_0', 'LaECE_IoU50', 'LaACE_0')),
    ],
    ids=['platt', 'precision', 'isotonic'],
)
def test_from_the_command_to_a_calibrated_test(
    before: dict[str, float],
    cfg: Config,
    capsys: pytest.CaptureFixture,
    options: list[str],
    falls: tuple[str, ...],
) -> None:
    assert main([*COMMAND, *options]) == 0
    text = capsys.readouterr().out
    assert 'default_hooks.boxes.parameters=out/boxes.json' in text
    content = json.loads(Path('out/boxes.json').read_text())
    assert content['data']['num_images'] == NUM_IMAGES
    after = figures_of_run(cfg, HOOK)
    for name in falls:
        assert after[f'calibration/{name}'] < 0.8 * before[f'calibration/{name}']
        # The cross-fitted figures of the command promise the same.
        promised = content['cross_fitted']
        assert promised['after'][name] < 0.8 * promised['before'][name]
    # Boxes whose scores differ by less than float32 can tell may change places.
    assert after['coco/bbox_mAP'] == pytest.approx(before['coco/bbox_mAP'], abs=1e-3)
    assert before['coco/bbox_mAP'] > 0.1
    assert after['calibration/oLRP_IoU50'] <= before['calibration/oLRP_IoU50'] + 0.01


def test_thresholds_of_the_file(
    before: dict[str, float], cfg: Config, capsys: pytest.CaptureFixture
) -> None:
    assert main([*COMMAND, '--json']) == 0
    content = json.loads(capsys.readouterr().out)
    assert content == json.loads(Path('out/boxes.json').read_text())
    metric, calibration = cfg.test_evaluator
    above = dict(calibration, preset='kuzucu2024', lrp_from='out/boxes.json')
    by_evaluator = figures_of_run(cfg, HOOK | dict(test_evaluator=[metric, above]))
    cut = {'default_hooks.boxes.apply_thresholds': True}
    by_hook = figures_of_run(cfg, HOOK | cut | dict(test_evaluator=[metric, dict(above)]))
    assert by_hook['calibration/LaECE_0'] == by_evaluator['calibration/LaECE_0']
    assert by_hook['calibration/LRP_0'] == by_evaluator['calibration/LRP_0']
    assert by_hook['coco/bbox_mAP'] < by_evaluator['coco/bbox_mAP']
    assert 0 < by_hook['calibration/num_detections'] < before['calibration/num_detections']


def test_a_second_test_of_a_runner_is_calibrated_once(
    cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(COMMAND) == 0
    changed = cfg.copy()
    changed.merge_from_dict(HOOK)
    runner = Runner.from_cfg(changed)
    figures = runner.test()
    assert 'test_step' not in vars(runner.model)
    with monkeypatch.context() as patch:
        patch.setattr(DetectionCalibration, 'compute_metrics', lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            runner.test()
    for metric in runner.test_loop.evaluator.metrics:
        metric.results.clear()
    assert runner.test() == figures


def test_inference_of_one_image(cfg: Config) -> None:
    assert main(COMMAND) == 0
    detector = MadeUpDetector().eval()
    detector.cfg = Config.fromfile('detector.py')
    path = next(path for path, objects in detector.truth.items() if objects)
    with pytest.raises(ConfigError, match="no 'dataset_meta' with its 'classes'"):
        calibrate_boxes(detector, 'out/boxes.json')
    detector.dataset_meta = cfg.test_dataloader.dataset.metainfo
    raw = inference_detector(detector, path).pred_instances
    end = calibrate_boxes(detector, 'out/boxes.json')
    calibrated = inference_detector(detector, path).pred_instances
    end()
    assert torch.equal(inference_detector(detector, path).pred_instances.scores, raw.scores)
    assert torch.equal(calibrated.bboxes, raw.bboxes)
    calibration = read_box_calibration('out/boxes.json')
    expected = calibration.calibrate(raw.scores.double().numpy(), raw.labels.numpy())
    assert torch.equal(calibrated.scores, torch.from_numpy(expected))
    assert not torch.allclose(calibrated.scores, raw.scores)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--method=platt'], '--method is for --target boxes'),
        (['--fit-to=iou'], '--fit-to is for --target boxes'),
    ],
    ids=['method', 'fit-to'],
)
def test_options_of_boxes_alone(
    cfg: Config, capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        main([arg for arg in COMMAND if arg != '--target=boxes'] + arguments)
    assert message in capsys.readouterr().err


def test_too_few_images(cfg: Config, capsys: pytest.CaptureFixture) -> None:
    assert main([*COMMAND, '--max-images=3']) != 0
    assert 'there are 3 images' in capsys.readouterr().err
