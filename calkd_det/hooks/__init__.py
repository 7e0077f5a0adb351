"""Hooks for mmengine's Runner."""

from calkd_det.hooks.teacher_calibration import TeacherCalibrationHook

__all__ = ['TeacherCalibrationHook']
