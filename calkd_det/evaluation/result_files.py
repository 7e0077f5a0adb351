"""Files of an evaluation of final boxes, and the thresholds that one hands on to another."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from calkd_det.calibration.reliability import Reliability
from calkd_det.errors import ConfigError
from calkd_det.evaluation.box_measurement import BoxMeasurement, plain_number
from calkd_det.evaluation.settings import CalibrationSettings, option_key

# The key of a file's LRP-optimal thresholds by class name; of `calkd calibrate --target boxes` too.
THRESHOLDS_KEY = 'score_thresholds'
THRESHOLDS_IOU_KEY = 'lrp_iou_thr'


def write_results(
    prefix: str,
    name: str,
    settings: CalibrationSettings,
    about: dict[str, Any],
    measured: BoxMeasurement,
) -> list[Path]:
    """Write the results of an evaluation to ``PREFIX.NAME.json`` and ``PREFIX.NAME.csv``.

    Args:
        prefix: Path of both files up to the name; their folder is made.
        name: What tells them from the files of other evaluators.
        settings: What was measured.
        about: What else to tell of the run; values of JSON.
        measured: The results.

    Returns:
        The two files.
    """
    classes = measured.classes
    content = {
        'settings': asdict(settings),
        **about,
        'figures': {key: plain_number(value) for key, value in measured.figures.items()},
        'bins': [] if measured.reliability is None else _bins(measured.reliability),
        'classes': classes.rows(),
        THRESHOLDS_IOU_KEY: settings.lrp_iou_thr,
        THRESHOLDS_KEY: dict(zip(classes.names, map(plain_number, measured.optimal_thresholds))),
    }
    paths = [Path(f'{prefix}.{name}.{ending}') for ending in ('json', 'csv')]
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
    paths[0].write_text(f'{text}\n', encoding='utf-8')
    lines = io.StringIO(newline='')
    writer = csv.DictWriter(lines, ['class', *classes.columns])
    writer.writeheader()
    writer.writerows(classes.rows())
    paths[1].write_text(lines.getvalue(), encoding='utf-8', newline='')
    return paths


def read_thresholds(path: str | Path, lrp_iou_thr: float) -> dict[str, float]:
    """Read the LRP-optimal thresholds by class name that an evaluation of other images wrote.

    Args:
        path: A JSON file of :func:`write_results`, or of ``calkd calibrate --target boxes``.
        lrp_iou_thr: The IoU threshold that they must have been chosen with.

    Returns:
        Thresholds, NaN for a class without a true positive.

    Raises:
        ConfigError: There is no such file, it holds no thresholds, or they belong to another IoU.
    """
    key = option_key('lrp_from')
    if not isinstance(path, (str, Path)):
        raise ConfigError(f'{key} must be the path of a JSON file, but is {path!r}')
    how = (
        "write it by an evaluation of other images: DetectionCalibration with outfile_prefix='...'"
    )
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise ConfigError(f"{key}: there is no file '{path}'; {how}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}: cannot read '{path}' as JSON: {error}") from error
    thresholds = content.get(THRESHOLDS_KEY) if isinstance(content, dict) else None
    if not isinstance(thresholds, dict) or not all(
        value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
        for value in thresholds.values()
    ):
        raise ConfigError(f"{key}: '{path}' has no thresholds under '{THRESHOLDS_KEY}'; {how}")
    if content.get(THRESHOLDS_IOU_KEY) != lrp_iou_thr:
        raise ConfigError(
            f"{key}: the thresholds of '{path}' are those of the LRP error at IoU "
            f'{content.get(THRESHOLDS_IOU_KEY)}, but {option_key("lrp_iou_thr")} is {lrp_iou_thr}: '
            'use the same for both'
        )
    return {name: math.nan if value is None else value for name, value in thresholds.items()}


def thresholds_in_order(
    thresholds: dict[str, float], names: Sequence[str], path: str | Path
) -> np.ndarray:
    """Return the thresholds of classes in their order, float64, shape (C,).

    Raises:
        ConfigError: A class is missing.
    """
    missing = [name for name in names if name not in thresholds]
    if missing:
        raise ConfigError(
            f"{option_key('lrp_from')}: '{path}' lacks the class {missing[0]!r} of the data set "
            f'that is evaluated; it has: {", ".join(sorted(thresholds))}'
        )
    return np.array([thresholds[name] for name in names])


def _bins(reliability: Reliability) -> list[dict[str, Any]]:
    columns = {
        'lower': reliability.lower,
        'upper': reliability.upper,
        'count': reliability.count,
        'confidence': reliability.confidence,
        'precision': reliability.accuracy,
    }
    return [dict(zip(columns, map(plain_number, values))) for values in zip(*columns.values())]
