"""Distillation losses: pure functions and a registered module around each."""

# A loss of a plain detector: registered here, and no part of distillation.
from calkd_det.losses import smoothed_cross_entropy_loss  # noqa: F401
from calkd_det.losses.base import BoxLoss, ClassLoss, DistillationLoss, FeatureLoss
from calkd_det.losses.binary_kd_loss import BinaryKDLoss, binary_kd_loss
from calkd_det.losses.box_kd_loss import BoxKDLoss, box_kd_loss
from calkd_det.losses.cwd_loss import CWDLoss, cwd_loss
from calkd_det.losses.dkd_loss import DKDLoss, dkd_loss
from calkd_det.losses.fgd_loss import FGDLoss, fgd_loss
from calkd_det.losses.kd_loss import KDLoss, kd_loss
from calkd_det.losses.ld_loss import LDLoss, ld_loss
from calkd_det.losses.learnt import LearntFeatureLoss
from calkd_det.losses.logit_standardization_kd_loss import (
    LogitStandardizationKDLoss,
    logit_standardization_kd_loss,
)
from calkd_det.losses.mgd_loss import MGDLoss, mgd_loss
from calkd_det.losses.mlld_loss import MLLDLoss, mlld_loss
from calkd_det.losses.pkd_loss import PKDLoss, pkd_loss

__all__ = [
    'BinaryKDLoss',
    'BoxKDLoss',
    'BoxLoss',
    'CWDLoss',
    'ClassLoss',
    'DKDLoss',
    'DistillationLoss',
    'FGDLoss',
    'FeatureLoss',
    'KDLoss',
    'LDLoss',
    'LearntFeatureLoss',
    'LogitStandardizationKDLoss',
    'MGDLoss',
    'MLLDLoss',
    'PKDLoss',
    'binary_kd_loss',
    'box_kd_loss',
    'cwd_loss',
    'dkd_loss',
    'fgd_loss',
    'kd_loss',
    'ld_loss',
    'logit_standardization_kd_loss',
    'mgd_loss',
    'mlld_loss',
    'pkd_loss',
]
