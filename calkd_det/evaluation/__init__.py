"""Evaluators for ``val_evaluator`` and ``test_evaluator``, and calibration of final boxes."""

from calkd_det.evaluation.box_calibration_hook import BoxCalibrationHook, calibrate_boxes
from calkd_det.evaluation.detection_calibration import DetectionCalibration
from calkd_det.evaluation.unrounded_coco import UnroundedCocoMetric

__all__ = ['BoxCalibrationHook', 'DetectionCalibration', 'UnroundedCocoMetric', 'calibrate_boxes']
