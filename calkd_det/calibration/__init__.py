"""Calibration of class logits: calibrators, temperature fits and metrics."""

from calkd_det.calibration.background_bias_scaling import BackgroundBiasScaling
from calkd_det.calibration.calibrator import Calibrator
from calkd_det.calibration.class_temperature_scaling import (
    ClassTemperatureScaling,
    ForegroundBackgroundScaling,
)
from calkd_det.calibration.class_temperatures import (
    ClassTemperatureFit,
    fit_class_temperatures,
    foreground_background,
)
from calkd_det.calibration.reliability import (
    Reliability,
    ReliabilityAccumulator,
    adaptive_ece,
    classwise_ece,
    reliability,
    reliability_from_confidences,
)
from calkd_det.calibration.scaling_fits import (
    ScalingFit,
    fit_background_bias,
    fit_beta_scaling,
    fit_platt_scaling,
)
from calkd_det.calibration.scores import brier_score, negative_log_likelihood
from calkd_det.calibration.sigmoid_scaling import BetaScaling, PlattScaling
from calkd_det.calibration.temperature import (
    TemperatureAccumulator,
    TemperatureFit,
    fit_temperature,
)
from calkd_det.calibration.temperature_scaling import TemperatureScaling

__all__ = [
    'BackgroundBiasScaling',
    'BetaScaling',
    'Calibrator',
    'ClassTemperatureFit',
    'ClassTemperatureScaling',
    'ForegroundBackgroundScaling',
    'PlattScaling',
    'Reliability',
    'ReliabilityAccumulator',
    'ScalingFit',
    'TemperatureAccumulator',
    'TemperatureFit',
    'TemperatureScaling',
    'adaptive_ece',
    'brier_score',
    'classwise_ece',
    'fit_background_bias',
    'fit_beta_scaling',
    'fit_class_temperatures',
    'fit_platt_scaling',
    'fit_temperature',
    'foreground_background',
    'negative_log_likelihood',
    'reliability',
    'reliability_from_confidences',
]
