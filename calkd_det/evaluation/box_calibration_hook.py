"""Calibrated scores of final boxes in a test run and in inference."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import HOOKS
from mmdet.structures import DetDataSample
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import nn

from calkd_det.errors import ConfigError
from calkd_det.evaluation.box_calibration import BoxCalibration, from_plain

_KEY = 'BoxCalibrationHook.parameters'


@HOOKS.register_module()
class BoxCalibrationHook(Hook):
    """Calibrate the scores of final boxes in a test run.

    The scores are changed in what the detector returns, so that all evaluators, drawings and
    dumped results have the calibrated ones. Neither weights nor training are changed. Validation
    during training is left as it is, because the parameters are those of one trained detector.

    The order of the boxes of a class is kept, and so is COCO's AP, which ranks each class alone.
    The order of boxes of different classes changes.

    Args:
        parameters: The JSON file that ``calkd calibrate --target boxes`` wrote.
        apply_thresholds: Whether to leave out boxes below the LRP-optimal thresholds of the file,
            as for a detector in use. The AP is then that of fewer boxes.

    Raises:
        ConfigError: The file cannot be read, or lacks a class of the data set.
    """

    def __init__(self, parameters: str | Path, apply_thresholds: bool = False) -> None:
        if not isinstance(apply_thresholds, bool):
            raise ConfigError(
                'BoxCalibrationHook.apply_thresholds must be True or False, but is '
                f'{apply_thresholds!r}'
            )
        self.parameters = parameters
        self.apply_thresholds = apply_thresholds
        self._calibration = read_box_calibration(parameters)
        self._remove: Callable[[], None] | None = None

    def before_test(self, runner: Runner) -> None:
        self.after_test(runner)  # a test that failed has not called it
        classes = runner.test_loop.dataloader.dataset.metainfo['classes']
        self._remove = _calibrate_test_step(
            runner.model,
            self._calibration.in_order_of(classes, f"{_KEY}: '{self.parameters}'"),
            self.apply_thresholds,
        )
        print_log(
            f"scores of final boxes are calibrated by '{self.parameters}' "
            f'({self._calibration.method}, fitted to {self._calibration.fit_to})',
            logger='current',
        )

    def after_test(self, runner: Runner) -> None:
        if self._remove is not None:
            self._remove()
        self._remove = None


def calibrate_boxes(
    model: nn.Module, parameters: str | Path, *, apply_thresholds: bool = False
) -> Callable[[], None]:
    """Calibrate the final boxes of a detector of ``mmdet.apis.init_detector`` from now on.

    Args:
        model: The detector, with its classes in ``dataset_meta``, as ``init_detector`` returns it.
        parameters: The JSON file that ``calkd calibrate --target boxes`` wrote.
        apply_thresholds: As for :class:`BoxCalibrationHook`.

    Returns:
        A function that ends it.

    Raises:
        ConfigError: The file cannot be read, or the classes do not fit.
    """
    classes = (getattr(model, 'dataset_meta', None) or {}).get('classes')
    if classes is None:
        raise ConfigError(
            "the detector has no 'dataset_meta' with its 'classes', which tell what its labels "
            'mean: set it, or build the detector by mmdet.apis.init_detector'
        )
    calibration = read_box_calibration(parameters).in_order_of(classes, f"'{parameters}'")
    return _calibrate_test_step(model, calibration, apply_thresholds)


def read_box_calibration(path: str | Path) -> BoxCalibration:
    """Read the file of a calibration of final boxes.

    Raises:
        ConfigError: It cannot be read.
    """
    if not isinstance(path, (str, Path)):
        raise ConfigError(f'{_KEY} must be the path of a JSON file, but is {path!r}')
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise ConfigError(
            f"{_KEY}: there is no file '{path}'; write it by calkd calibrate --target boxes"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{_KEY}: cannot read '{path}' as JSON: {error}") from error
    return from_plain(content, f"{_KEY}: '{path}'")


def _calibrate_test_step(
    model: nn.Module, calibration: BoxCalibration, apply_thresholds: bool
) -> Callable[[], None]:
    """Replace ``test_step``, which Runner and ``inference_detector`` call; return the undoing."""
    test_step = model.test_step

    def calibrated(*args: Any, **kwargs: Any) -> Sequence[DetDataSample]:
        samples = test_step(*args, **kwargs)
        for sample in samples:
            _calibrate_sample(sample, calibration, apply_thresholds)
        return samples

    model.test_step = calibrated

    def remove() -> None:
        del model.test_step

    return remove


def _calibrate_sample(
    sample: DetDataSample, calibration: BoxCalibration, apply_thresholds: bool
) -> None:
    instances = sample.pred_instances
    scores, labels = instances.scores.double().cpu().numpy(), instances.labels.cpu().numpy()
    calibrated = calibration.calibrate(scores, labels)
    instances.scores = torch.from_numpy(calibrated).to(instances.scores.device)
    if apply_thresholds:
        kept = calibration.keeps(scores, calibrated, labels)
        sample.pred_instances = instances[torch.from_numpy(kept).to(instances.labels.device)]
