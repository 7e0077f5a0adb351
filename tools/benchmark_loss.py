"""Measure memory and time of the losses of a dense head."""

from __future__ import annotations

import sys
import warnings

warnings.filterwarnings('ignore')  # mmengine's, mmcv's and torch's own

from calkd_det.commands.benchmark.loss_cost import main  # noqa: E402

if __name__ == '__main__':
    sys.exit(main())
