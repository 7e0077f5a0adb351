"""Hooks for mmengine's Runner."""

from calkd_det.hooks.run_fingerprint import RunFingerprintHook
from calkd_det.hooks.stop_distillation import StopDistillationHook
from calkd_det.hooks.teacher_calibration import TeacherCalibrationHook

__all__ = ['RunFingerprintHook', 'StopDistillationHook', 'TeacherCalibrationHook']
