"""Data sets that are part of CalKD-Det."""

from calkd_det.datasets.mini import MiniDataset, write_mini_dataset

__all__ = ['MiniDataset', 'write_mini_dataset']
