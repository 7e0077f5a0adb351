"""Evaluators for ``val_evaluator`` and ``test_evaluator``, to be used beside mmdet's."""

from calkd_det.evaluation.detection_calibration import DetectionCalibration
from calkd_det.evaluation.unrounded_coco import UnroundedCocoMetric

__all__ = ['DetectionCalibration', 'UnroundedCocoMetric']
