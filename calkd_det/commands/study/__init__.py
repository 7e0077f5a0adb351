"""Studies: grids of teachers, temperatures, losses and seeds, run, kept and reported."""

from calkd_det.commands.study.label_smoothing import SmoothedCrossEntropyLoss
from calkd_det.commands.study.settings import Study, read_study

__all__ = ['SmoothedCrossEntropyLoss', 'Study', 'read_study']
