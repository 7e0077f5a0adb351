"""Evaluator for the calibration of a detector's final boxes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import METRICS
from mmengine.evaluator import BaseMetric
from mmengine.fileio import get_local_path
from mmengine.logging import MessageHub, print_log
from mmengine.visualization import Visualizer

from calkd_det.calibration.diagram import plot_reliability
from calkd_det.calibration.reliability import Reliability
from calkd_det.errors import ConfigError
from calkd_det.evaluation.box_measurement import BoxMeasurement, measure_boxes, overlap_name
from calkd_det.evaluation.localisation_aware import LAECE_BINS
from calkd_det.evaluation.matching import ImageDetections
from calkd_det.evaluation.result_files import (
    read_thresholds,
    thresholds_in_order,
    write_results,
)
from calkd_det.evaluation.settings import option_key, resolve_settings


@METRICS.register_module()
class DetectionCalibration(BaseMetric):
    """Calibration and LRP errors of a detector's final boxes.

    The evaluator takes the predictions that :class:`mmdet.evaluation.CocoMetric` takes and maps
    labels to categories in the same way. It matches boxes as pycocotools does
    (:func:`.match_detections`). With the default thresholds its figures are

    - ``D-ECE_IoU50``: the expected calibration error of 'this box is a true positive at
      IoU >= 0.5', over all classes together, in equal-width bins ``(lower, upper]`` (Küppers et
      al., `Multivariate Confidence Calibration for Object Detection
      <https://arxiv.org/abs/2004.13546>`_, CVPRW 2020, with the confidence as the only dimension);
    - ``D-ECE_over_IoU50`` and ``D-ECE_under_IoU50``: its parts from over- and from under-confident
      bins, which add up to it;
    - ``LaECE_IoU50``, ``LaECE_0``: see :func:`.laece`;
    - ``LaACE_0``: see :func:`.laace`;
    - ``LRP_IoU50`` and its parts ``LRP_loc_IoU50``, ``LRP_FP_IoU50`` and ``LRP_FN_IoU50``: see
      :class:`.LrpErrors`;
    - ``oLRP_IoU50`` and its parts: the same at the score threshold of each class that has the
      least LRP error on these images, see :func:`.optimal_lrp`;
    - ``OCE``: the mean error of the objects, see :func:`.object_errors`;
    - ``num_detections``: the number of boxes of the figures at ``iou_thr``.

    The reliability diagram of the D-ECE goes, as an image, to the current visualizer and so to each
    of its backends (a PNG in the run's folder, TensorBoard, ...).

    Without any detection the calibration errors are NaN, and a warning is logged.

    Args:
        ann_file: The annotation file, in COCO format, of the evaluated images.
        iou_thr: The least IoU, in (0, 1], of a true positive; 0.5 by default.
        num_bins: Number of bins of the D-ECE, 15 by default. The LaECE has 25.
        score_thr: Detections below this score, in [0, 1], are left out; 0 by default. ``'lrp'``:
            each class has the threshold of least LRP error.
        lrp_iou_thr: The least IoU, in [0, 1], of a true positive of the LRP error; ``iou_thr`` by
            default, 0 for any overlap.
        lrp_from: With ``score_thr='lrp'``, the JSON file of an evaluation of other images, whose
            thresholds are used. By default they are chosen on the images that are evaluated,
            which makes their errors look better than on others.
        preset: The options of a paper: ``'kuppers2020'``, ``'oksuz2023'`` or ``'kuzucu2024'``.
        classwise: Whether to log a table of the classes.
        outfile_prefix: Path, up to ``.calibration.json`` and ``.calibration.csv``, of files of the
            figures, the bins and the classes; the names have ``prefix`` in place of
            ``calibration``. Each evaluation replaces them.
        out_dir: A folder for a PNG of the reliability diagram, besides the visualizer's. Each
            evaluation replaces the file.
        prefix: The prefix of the figures' names, ``calibration`` by default. Two evaluators of
            this type need different ones.
        collect_device: See :class:`mmengine.evaluator.BaseMetric`.
        collect_dir: See :class:`mmengine.evaluator.BaseMetric`.

    Raises:
        ConfigError: A value is out of its range or contradicts the preset, a file cannot be read,
            or it lacks a class or an image of the evaluated data set.
    """

    default_prefix = 'calibration'

    def __init__(
        self,
        ann_file: str,
        iou_thr: float | None = None,
        num_bins: int | None = None,
        score_thr: float | str | None = None,
        out_dir: str | None = None,
        prefix: str | None = None,
        collect_device: str = 'cpu',
        collect_dir: str | None = None,
        *,
        lrp_iou_thr: float | None = None,
        lrp_from: str | None = None,
        preset: str | None = None,
        classwise: bool = False,
        outfile_prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix, collect_dir=collect_dir)
        self.settings = resolve_settings(
            preset, iou_thr=iou_thr, num_bins=num_bins, score_thr=score_thr, lrp_iou_thr=lrp_iou_thr
        )
        if lrp_from is not None and self.settings.score_thr != 'lrp':
            raise ConfigError(
                f"{option_key('lrp_from')} is for score_thr='lrp', but score_thr is "
                f'{self.settings.score_thr:g}: leave out one of them'
            )
        self.lrp_from = lrp_from
        self._given_thresholds = (
            None if lrp_from is None else read_thresholds(lrp_from, self.settings.lrp_iou_thr)
        )
        self.classwise = classwise
        self.outfile_prefix = outfile_prefix
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
        least_score = 0.0 if self.settings.score_thr == 'lrp' else self.settings.score_thr
        for sample in data_samples:
            image_id, instances = sample['img_id'], sample['pred_instances']
            if image_id not in self._coco.imgs:
                raise ConfigError(
                    f'{option_key("ann_file")}: {self.ann_file} has no image with the id '
                    f'{image_id!r}; is it the annotation file of the data set that is evaluated?'
                )
            labels = instances['labels']
            if (labels >= num_classes).any():
                raise ConfigError(
                    f'the detector gives the label {int(labels.max())}, but the data set that is '
                    f'evaluated has {num_classes} classes: compare num_classes of its head'
                )
            self.results.append(ImageDetections.from_instances(image_id, instances, least_score))

    def compute_metrics(self, results: list[ImageDetections]) -> dict[str, float]:
        """Compute the figures and draw the diagram from the detections of all processes.

        mmengine calls it in the main process only.
        """
        measured = measure_boxes(
            self._coco,
            results,
            self._category_ids,
            self.dataset_meta['classes'],
            self.settings,
            None
            if self._given_thresholds is None
            else thresholds_in_order(
                self._given_thresholds, self.dataset_meta['classes'], self.lrp_from
            ),
        )
        self._log(measured)
        if self.outfile_prefix is not None:
            files = write_results(
                self.outfile_prefix,
                self._name,
                self.settings,
                dict(ann_file=str(self.ann_file), lrp_from=self.lrp_from and str(self.lrp_from)),
                measured,
            )
            print_log(f'wrote {" and ".join(map(str, files))}', logger='current')
        if measured.reliability is not None:
            scope = overlap_name(self.settings.iou_thr)
            self._publish_diagram(measured.reliability, f'{self._name}_reliability_{scope}')
        return measured.figures

    @property
    def _name(self) -> str:
        return self.prefix.replace('/', '_')

    @cached_property
    def _category_ids(self) -> list[int]:
        """The category id of each label, in the order of CocoMetric and CocoDataset."""
        classes = self.dataset_meta['classes']
        known = {category['name'] for category in self._coco.cats.values()}
        missing = [name for name in classes if name not in known]
        if missing:
            raise ConfigError(
                f'{option_key("ann_file")}: {self.ann_file} lacks the class {missing[0]!r} of '
                f'the data set that is evaluated; it has: {", ".join(sorted(known))}'
            )
        return self._coco.get_cat_ids(cat_names=classes)

    def _log(self, measured: BoxMeasurement) -> None:
        settings, columns = self.settings, measured.classes.columns
        choice = f'with a score >= {settings.score_thr}'
        if settings.score_thr == 'lrp':
            source = (
                'on these images, so that the errors look better than on others'
                if self.lrp_from is None
                else f"by '{self.lrp_from}'"
            )
            overlap = f'IoU >= {settings.lrp_iou_thr:g}' if settings.lrp_iou_thr else 'any overlap'
            choice = (
                'with a score of at least the threshold of their class, which has the least LRP '
                f'error at {overlap} and was chosen {source}'
            )
            num_without = int(np.isnan(columns['score_thr']).sum())
            if num_without:
                choice += f'; {num_without} classes have no threshold for want of a true positive'
        if not measured.num_detections:
            print_log(
                f'There is no detection {choice}: nothing is known of the calibration.',
                logger='current',
                level=logging.WARNING,
            )
            return
        num_detected = int((columns['num_detections'] > 0).sum())
        num_with_objects = int((columns['num_objects'] > 0).sum())
        preset = '' if settings.preset is None else f' (preset {settings.preset})'
        print_log(
            f'Calibration of {measured.num_detections} final boxes {choice}{preset}. '
            f'D-ECE: all classes together, {settings.num_bins} equal-width bins. '
            f'LaECE: {LAECE_BINS} equal-width bins. '
            f'LaECE and LaACE: mean over the {num_detected} of {len(measured.classes.names)} '
            f'classes that were detected. LRP: mean over the {num_with_objects} classes with '
            'objects.',
            logger='current',
        )
        if self.classwise:
            print_log(f'\n{measured.classes.table()}', logger='current')

    def _publish_diagram(self, reliability: Reliability, name: str) -> None:
        # Without a visualizer, get_current_instance() would fail and keep mmengine's lock.
        visualizer = Visualizer.get_current_instance() if Visualizer._instance_dict else None
        if visualizer is None and self.out_dir is None:
            return
        settings = self.settings
        chosen = (
            'above LRP-optimal scores'
            if settings.score_thr == 'lrp'
            else f'of score ≥ {settings.score_thr:g}'
        )
        figure = plot_reliability(
            reliability,
            title=f'Final boxes: true positive at IoU ≥ {settings.iou_thr:g}\n'
            f'{reliability.num_samples} boxes {chosen}, {settings.num_bins} equal-width bins',
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


def _read_annotations(ann_file: Any) -> COCO:
    key = option_key('ann_file')
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
