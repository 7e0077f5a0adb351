"""Evaluators that stand beside mmdet's in a config's ``val_evaluator`` and ``test_evaluator``."""

from calkd_det.evaluation.detection_calibration import DetectionCalibration

__all__ = ['DetectionCalibration']
