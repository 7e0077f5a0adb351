"""The command line of CalKD-Det.

A package of its own, because ``import calkd_det`` imports torch and mmdet: ``--help`` must not
wait for them.
"""

from calkd_cli.main import main

__all__ = ['main']
