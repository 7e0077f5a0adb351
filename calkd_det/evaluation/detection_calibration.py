"""Evaluator for the calibration of a detector's final boxes."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import METRICS
from mmengine.evaluator import BaseMetric
from mmengine.fileio import get_local_path
from mmengine.logging import MessageHub, print_log
from mmengine.visualization import Visualizer

from calkd_det.calibration.diagram import plot_reliability
from calkd_det.calibration.reliability import Reliability, reliability_from_confidences
from calkd_det.config import check_number
from calkd_det.errors import ConfigError
from calkd_det.evaluation.localisation_aware import LAECE_BINS, laace, laece
from calkd_det.evaluation.matching import DetectionMatches, ImageDetections, match_detections


@METRICS.register_module()
class DetectionCalibration(BaseMetric):
    """Calibration errors of a detector's final boxes.

    The evaluator takes the predictions that :class:`mmdet.evaluation.CocoMetric` takes and maps
    labels to categories in the same way. It matches boxes by pycocotools
    (:func:`.match_detections`). With the default threshold its figures are

    - ``D-ECE_IoU50``: the expected calibration error of 'this box is a true positive at
      IoU >= 0.5', over all classes together, in equal-width bins ``(lower, upper]`` (Küppers et
      al., `Multivariate Confidence Calibration for Object Detection
      <https://arxiv.org/abs/2004.13546>`_, CVPRW 2020, with the confidence as the only dimension);
    - ``D-ECE_over_IoU50`` and ``D-ECE_under_IoU50``: its parts from over- and from under-confident
      bins, which add up to it;
    - ``LaECE_IoU50``, ``LaECE_0``: see :func:`.laece`;
    - ``LaACE_0``: see :func:`.laace`;
    - ``num_detections``: the number of boxes of the figures at ``iou_thr``.

    The reliability diagram of the D-ECE goes, as an image, to the current visualizer and so to each
    of its backends (a PNG in the run's folder, TensorBoard, ...).

    Without any detection all other figures are NaN, and a warning is logged.

    Args:
        ann_file: The annotation file, in COCO format, of the evaluated images.
        iou_thr: The least IoU, in (0, 1], of a true positive.
        num_bins: Number of bins of the D-ECE. The LaECE has 25.
        score_thr: Detections below this score, in [0, 1], are left out.
        out_dir: A folder for a PNG of the reliability diagram, besides the visualizer's. Each
            evaluation replaces the file.
        prefix: The prefix of the figures' names, ``calibration`` by default. Two evaluators of
            this type need different ones.
        collect_device: See :class:`mmengine.evaluator.BaseMetric`.
        collect_dir: See :class:`mmengine.evaluator.BaseMetric`.

    Raises:
        ConfigError: A value is out of its range, the annotation file cannot be read, or it lacks
            a class or an image of the evaluated data set.
    """

    default_prefix = 'calibration'

    def __init__(
        self,
        ann_file: str,
        iou_thr: float = 0.5,
        num_bins: int = 15,
        score_thr: float = 0.0,
        out_dir: str | None = None,
        prefix: str | None = None,
        collect_device: str = 'cpu',
        collect_dir: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix, collect_dir=collect_dir)
        self.iou_thr = _check_fraction('iou_thr', iou_thr, minimum_open=True)
        self.score_thr = _check_fraction('score_thr', score_thr, minimum_open=False)
        if isinstance(num_bins, bool) or not isinstance(num_bins, int) or num_bins < 1:
            raise ConfigError(f'{_key("num_bins")} must be an integer >= 1, but is {num_bins!r}')
        self.num_bins = num_bins
        self.out_dir = None if out_dir is None else Path(out_dir)
        self.ann_file = ann_file
        self._coco = _read_annotations(ann_file)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Store the detections of a batch.

        Args:
            data_batch: Unused.
            data_samples: Images with ``img_id`` and ``pred_instances``: ``bboxes`` (N, 4) in pixels
                of the original image, ``scores`` (N,), ``labels`` (N,).
        """
        num_classes = len(self._category_ids)
        for sample in data_samples:
            image_id, instances = sample['img_id'], sample['pred_instances']
            if image_id not in self._coco.imgs:
                raise ConfigError(
                    f'{_key("ann_file")}: {self.ann_file} has no image with the id {image_id!r}; '
                    'is it the annotation file of the data set that is evaluated?'
                )
            labels = instances['labels']
            if (labels >= num_classes).any():
                raise ConfigError(
                    f'the detector gives the label {int(labels.max())}, but the data set that is '
                    f'evaluated has {num_classes} classes: compare num_classes of its head'
                )
            kept = instances['scores'] >= self.score_thr
            self.results.append(
                ImageDetections(
                    image_id,
                    boxes=instances['bboxes'][kept].float().cpu().numpy(),
                    scores=instances['scores'][kept].float().cpu().numpy(),
                    labels=labels[kept].cpu().numpy(),
                )
            )

    def compute_metrics(self, results: list[ImageDetections]) -> dict[str, float]:
        """Compute the figures and draw the diagram from the detections of all processes.

        mmengine calls it in the main process only.
        """
        overlapping, matched = match_detections(
            self._coco, results, self._category_ids, (0.0, self.iou_thr)
        )
        scope = f'IoU{100 * self.iou_thr:g}'
        figures = {
            f'D-ECE_{scope}': math.nan,
            f'D-ECE_over_{scope}': math.nan,
            f'D-ECE_under_{scope}': math.nan,
            f'LaECE_{scope}': laece(matched),
            'LaECE_0': laece(overlapping),
            'LaACE_0': laace(overlapping),
            # mmengine's JSON log of a test drops integers.
            'num_detections': float(len(matched)),
        }
        if not len(matched):
            print_log(
                f'There is no detection with a score >= {self.score_thr:g}: nothing is known of '
                'the calibration.',
                logger='current',
                level=logging.WARNING,
            )
            return figures
        reliability = reliability_from_confidences(
            torch.from_numpy(matched.scores), torch.from_numpy(matched.hits), n_bins=self.num_bins
        )
        figures[f'D-ECE_{scope}'] = reliability.ece
        figures[f'D-ECE_over_{scope}'] = reliability.ece_over
        figures[f'D-ECE_under_{scope}'] = reliability.ece_under
        self._log_settings(matched)
        self._publish_diagram(reliability, f'{self.prefix}_reliability_{scope}'.replace('/', '_'))
        return figures

    @cached_property
    def _category_ids(self) -> list[int]:
        """The category id of each label, in the order of CocoMetric and CocoDataset."""
        classes = self.dataset_meta['classes']
        known = {category['name'] for category in self._coco.cats.values()}
        missing = [name for name in classes if name not in known]
        if missing:
            raise ConfigError(
                f'{_key("ann_file")}: {self.ann_file} lacks the class {missing[0]!r} of the data '
                f'set that is evaluated; it has: {", ".join(sorted(known))}'
            )
        return self._coco.get_cat_ids(cat_names=classes)

    def _log_settings(self, matched: DetectionMatches) -> None:
        num_detected, num_classes = len(np.unique(matched.labels)), len(self._category_ids)
        print_log(
            f'Calibration of {len(matched)} final boxes with a score >= {self.score_thr:g}. '
            f'D-ECE: all classes together, {self.num_bins} equal-width bins. '
            f'LaECE: {LAECE_BINS} equal-width bins. '
            f'LaECE and LaACE: mean over the {num_detected} of {num_classes} classes that were '
            'detected.',
            logger='current',
        )

    def _publish_diagram(self, reliability: Reliability, name: str) -> None:
        # Without a visualizer, get_current_instance() would fail and keep mmengine's lock.
        visualizer = Visualizer.get_current_instance() if Visualizer._instance_dict else None
        if visualizer is None and self.out_dir is None:
            return
        figure = plot_reliability(
            reliability,
            title=f'Final boxes: true positive at IoU ≥ {self.iou_thr:g}\n'
            f'{reliability.num_samples} boxes of score ≥ {self.score_thr:g}, '
            f'{self.num_bins} equal-width bins',
        )
        diagram, histogram = figure.axes
        diagram.set_ylabel('precision')
        histogram.set_ylabel('boxes')
        if self.out_dir is not None:
            self.out_dir.mkdir(parents=True, exist_ok=True)
            figure.savefig(self.out_dir / f'{name}.png')
        if visualizer is not None:
            step = MessageHub.get_current_instance().get_info('iter', 0)
            visualizer.add_image(name, _to_rgb(figure), step)


def _key(name: str) -> str:
    return f'val_evaluator.{name} (or test_evaluator.{name})'


def _check_fraction(name: str, value: Any, *, minimum_open: bool) -> float:
    value = check_number(value, _key(name), minimum_open=minimum_open, hint='at most 1')
    if value > 1:
        raise ConfigError(f'{_key(name)} must be at most 1, but is {value}')
    return value


def _read_annotations(ann_file: Any) -> COCO:
    key = _key('ann_file')
    if not isinstance(ann_file, (str, Path)):
        raise ConfigError(f'{key} must be the path of an annotation file, but is {ann_file!r}')
    try:
        with get_local_path(ann_file) as local_path:
            coco = COCO(local_path)
    except (OSError, ValueError, AssertionError) as error:
        raise ConfigError(f'{key}: {ann_file} cannot be read: {error}') from error
    for entry in ('images', 'annotations', 'categories'):
        if entry not in coco.dataset:
            raise ConfigError(f'{key}: {ann_file} is not in COCO format: it has no {entry!r}')
    return coco


def _to_rgb(figure: Figure) -> np.ndarray:
    """Return a figure as an RGB image, uint8, shape (height, width, 3)."""
    figure.canvas.draw()
    return np.ascontiguousarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])
