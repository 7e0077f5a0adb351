"""Calibration of class logits. Knows nothing of distillation."""

from calkd_det.calibration.temperature_scaling import Calibrator, TemperatureScaling

__all__ = ['Calibrator', 'TemperatureScaling']
