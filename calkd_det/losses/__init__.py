"""Distillation losses: pure functions and a registered module around each."""

from calkd_det.losses.kd_loss import KDLoss, kd_loss

__all__ = ['KDLoss', 'kd_loss']
