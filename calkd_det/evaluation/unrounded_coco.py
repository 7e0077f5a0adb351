"""COCO's figures in full precision."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
from mmdet.datasets.api_wrappers import COCOeval, COCOevalMP
from mmdet.evaluation import CocoMetric
from mmdet.evaluation.metrics import coco_metric
from mmdet.registry import METRICS

# Places of the figures in COCOeval.stats, as mmdet names them.
FIGURES = {'mAP': 0, 'mAP_50': 1, 'mAP_75': 2, 'mAP_s': 3, 'mAP_m': 4, 'mAP_l': 5}


@METRICS.register_module()
class UnroundedCocoMetric(CocoMetric):
    """mmdet's ``CocoMetric`` without its rounding to three digits.

    A difference of rounded figures is a multiple of 0.1 points, so that few pairs can be equal by
    chance. Figures of ``bbox`` and ``segm`` by all classes are kept in full; others stay as mmdet
    gives them. Where nothing was detected at all, mmdet gives no figures; here they are 0.
    """

    def compute_metrics(self, results: list) -> dict[str, float]:
        found: dict[str, np.ndarray] = {}

        def recorded(cls: type) -> type:
            class Recorded(cls):
                def summarize(self, *args: Any, **kwargs: Any) -> None:
                    super().summarize(*args, **kwargs)
                    found[self.params.iouType] = self.stats

            return Recorded

        # mmdet rounds within its method and keeps nothing else.
        with mock.patch.multiple(
            coco_metric, COCOeval=recorded(COCOeval), COCOevalMP=recorded(COCOevalMP)
        ):
            figures = super().compute_metrics(results)
        if self.format_only:
            return figures
        for metric in self.metrics:
            if metric not in ('bbox', 'segm'):
                continue
            for item in self.metric_items or FIGURES:
                key = f'{metric}_{item}'
                if metric not in found:
                    figures[key] = 0.0
                elif item in FIGURES and key in figures:
                    figures[key] = float(found[metric][FIGURES[item]])
        return figures
