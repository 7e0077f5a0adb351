"""Settings of DetectionCalibration: defaults, and the presets of papers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from calkd_det.config import check_number
from calkd_det.errors import ConfigError, did_you_mean

_DEFAULTS = dict(iou_thr=0.5, num_bins=15, score_thr=0.0)

# The values of each option that a paper uses, its main one first.
PRESETS: dict[str, dict[str, tuple[Any, ...]]] = {
    # Küppers et al., https://arxiv.org/abs/2004.13546, with the confidence alone.
    'kuppers2020': dict(iou_thr=(0.6, 0.75), num_bins=(20,), score_thr=(0.3,)),
    # Oksuz et al., https://arxiv.org/abs/2307.00934.
    'oksuz2023': dict(iou_thr=(0.1,), score_thr=('lrp',), lrp_iou_thr=(0.1,)),
    # Kuzucu et al., https://arxiv.org/abs/2405.20459.
    'kuzucu2024': dict(iou_thr=(0.5,), num_bins=(10,), score_thr=('lrp',), lrp_iou_thr=(0.0,)),
}


@dataclass(frozen=True)
class CalibrationSettings:
    """What :class:`DetectionCalibration` measures.

    Attributes:
        preset: The preset that they come from, or None.
        iou_thr: The least IoU of a true positive.
        num_bins: Number of bins of the D-ECE.
        score_thr: The least score of a detection; ``'lrp'`` for the threshold of each class that
            has the least LRP error.
        lrp_iou_thr: The least IoU of a true positive in the LRP error; 0 for any overlap.
    """

    preset: str | None
    iou_thr: float
    num_bins: int
    score_thr: float | Literal['lrp']
    lrp_iou_thr: float


def option_key(name: str) -> str:
    """Return how a message names an option of an evaluator."""
    return f'val_evaluator.{name} (or test_evaluator.{name})'


def resolve_settings(preset: str | None, **given: Any) -> CalibrationSettings:
    """Return checked settings from a preset and from options.

    Args:
        preset: A name of :data:`PRESETS`, or None.
        given: ``iou_thr``, ``num_bins``, ``score_thr`` and ``lrp_iou_thr``; None for the preset's
            or the default value. ``lrp_iou_thr`` is ``iou_thr`` by default.

    Raises:
        ConfigError: The preset is unknown, a value contradicts it, or is out of range.
    """
    if preset is not None and not (isinstance(preset, str) and preset in PRESETS):
        raise ConfigError(
            f'{option_key("preset")}: there is no preset {preset!r}; '
            f'{did_you_mean(str(preset), list(PRESETS))}'
        )
    values = dict(_DEFAULTS)
    for name, allowed in PRESETS.get(preset, {}).items():
        values[name] = allowed[0] if given[name] is None else given[name]
        if values[name] not in allowed:
            raise ConfigError(
                f'{option_key(name)} is {given[name]!r}, but preset={preset!r} means '
                f'{" or ".join(repr(value) for value in allowed)}: leave out one of them'
            )
    values |= {name: value for name, value in given.items() if value is not None}
    iou_thr = _check_fraction('iou_thr', values['iou_thr'], minimum_open=True)
    score_thr, num_bins = values['score_thr'], values['num_bins']
    if isinstance(score_thr, str) and score_thr != 'lrp':
        raise ConfigError(
            f"{option_key('score_thr')} must be a number from 0 to 1 or 'lrp', but is {score_thr!r}"
        )
    if isinstance(num_bins, bool) or not isinstance(num_bins, int) or num_bins < 1:
        raise ConfigError(f'{option_key("num_bins")} must be an integer >= 1, but is {num_bins!r}')
    return CalibrationSettings(
        preset,
        iou_thr,
        num_bins,
        score_thr
        if score_thr == 'lrp'
        else _check_fraction('score_thr', score_thr, minimum_open=False),
        _check_fraction('lrp_iou_thr', values.get('lrp_iou_thr', iou_thr), minimum_open=False),
    )


def _check_fraction(name: str, value: Any, *, minimum_open: bool) -> float:
    value = check_number(value, option_key(name), minimum_open=minimum_open, hint='at most 1')
    if value > 1:
        raise ConfigError(f'{option_key(name)} must be at most 1, but is {value}')
    return value
