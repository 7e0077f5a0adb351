"""Data sets that come with CalKD-Det."""

from calkd_det.datasets.mini import MiniDataset, write_mini_dataset

__all__ = ['MiniDataset', 'write_mini_dataset']
