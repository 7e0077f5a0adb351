"""Distillation losses: pure functions and a registered module around each."""

from calkd_det.losses.dkd_loss import DKDLoss, dkd_loss
from calkd_det.losses.kd_loss import KDLoss, kd_loss
from calkd_det.losses.mlld_loss import MLLDLoss, mlld_loss

__all__ = [
    'DKDLoss',
    'KDLoss',
    'MLLDLoss',
    'dkd_loss',
    'kd_loss',
    'mlld_loss',
]
