"""Find the tap of a detector, and register heads and taps of one's own."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from calkd_det.errors import ConfigError
from calkd_det.taps.base import Tap
from calkd_det.taps.cascade_roi_head import CascadeRoIHeadTap
from calkd_det.taps.dense_head import Branch, DenseHeadTap
from calkd_det.taps.mask_queries import MaskQueryTap
from calkd_det.taps.queries import QueryTap
from calkd_det.taps.refused import describe_heads, reason_against
from calkd_det.taps.roi_head import RoIHeadTap
from calkd_det.taps.self_test import check_answers
from calkd_det.taps.yolox_head import YOLOXHeadTap

Head = TypeVar('Head', bound=type[nn.Module])

_ROI_TAPS = (RoIHeadTap(), CascadeRoIHeadTap())
_DENSE_TAPS = (DenseHeadTap(), YOLOXHeadTap())
# The first that supports a detector is taken.
TAPS: list[Tap] = [*_ROI_TAPS, *_DENSE_TAPS, QueryTap(), MaskQueryTap()]


def find_tap(detector: nn.Module, key: str) -> Tap:
    """Return the tap that supports the detector's head.

    Args:
        detector: Any mmdet detector.
        key: How an error message names it, e.g. ``model`` or ``model.teacher.config``.

    Raises:
        ConfigError: No tap supports the head, or the tap computes other logits than the head,
            see :func:`~calkd_det.taps.self_test.check_answers`.
    """
    for tap in TAPS:
        if tap.supports(detector):
            if not tap.is_tried(detector):
                check_answers(tap, detector, key)
            return tap
    reason = reason_against(detector) or _hint(detector)
    raise ConfigError(
        f'{key}: CalKD-Det cannot read the class logits of a {type(detector).__name__} with '
        f'{describe_heads(detector)}{f": {reason}" if reason else ""}. It knows '
        f'{"; ".join(tap.head_names for tap in TAPS)}'
    )


def register_dense_head(head: Head, branch: Branch | None = None) -> Head:
    """Register a dense head of one's own, so that its detector can be student and teacher.

    Args:
        head: A head that classifies by sigmoids. Its ``forward`` returns the maps of class logits
            first, and its ``loss_cls`` gets one row for each sample.
        branch: The branch with its classifier; None for that of its nearest registered base class.

    Returns:
        The head, so that this can be a decorator.

    Raises:
        ConfigError: ``head`` is no class or is registered already, or ``branch`` is None and it
            has no registered base class.

    Example:
        >>> from mmdet.models.dense_heads import RetinaHead
        >>> from mmdet.registry import MODELS
        >>> @register_dense_head
        ... @MODELS.register_module()
        ... class WideRetinaHead(RetinaHead):
        ...     pass
    """
    _check_head(head, [name for tap in _DENSE_TAPS for name in tap.built_in])
    for parent in head.__mro__[1:]:
        for tap in _DENSE_TAPS:
            if parent in tap.branches:
                tap.branches[head] = branch or tap.branches[parent]
                return head
    if branch is None:
        raise ConfigError(
            f'{head.__name__} derives from no dense head that CalKD-Det knows: tell where its '
            f'classifier is, register_dense_head({head.__name__}, Branch(convs=..., '
            'classifier=...))'
        )
    _DENSE_TAPS[0].branches[head] = branch
    return head


def register_roi_head(roi_head: Head) -> Head:
    """Register a RoI head of one's own, so that its detector can be student and teacher.

    Args:
        roi_head: A subclass of a RoI head that CalKD-Det knows.

    Returns:
        The RoI head, so that this can be a decorator.

    Raises:
        ConfigError: ``roi_head`` is no class, is registered already, or has no registered base
            class.
    """
    _check_head(roi_head, [name for tap in _ROI_TAPS for name in tap.built_in])
    for parent in roi_head.__mro__[1:]:
        for tap in _ROI_TAPS:
            if parent in tap.roi_heads:
                if roi_head not in tap.roi_heads:
                    tap.roi_heads.append(roi_head)
                return roi_head
    raise ConfigError(
        f'{roi_head.__name__} derives from no RoI head that CalKD-Det knows: write a subclass of '
        'calkd_det.taps.Tap for it, and register_tap(MyTap())'
    )


def register_tap(tap: Tap) -> Tap:
    """Register a tap of one's own for a family of heads. It goes before all other taps.

    Raises:
        ConfigError: ``tap`` is no instance of a :class:`~calkd_det.taps.Tap`.
    """
    if not isinstance(tap, Tap):
        raise ConfigError(
            f'register_tap must be given an instance of a subclass of Tap, but is given {tap!r}'
        )
    TAPS.insert(0, tap)
    return tap


def _check_head(head: type[nn.Module], built_in: list[type[nn.Module]]) -> None:
    if not (isinstance(head, type) and issubclass(head, nn.Module)):
        raise ConfigError(f'a head is registered by its class, but {head!r} is none')
    if head in built_in:
        raise ConfigError(f'{head.__name__} is known already and needs no registration')


def _hint(detector: nn.Module) -> str | None:
    """Return how to register a head that derives from a known one; None for any other."""
    for name, taps, register in (
        ('roi_head', _ROI_TAPS, 'register_roi_head'),
        ('bbox_head', _DENSE_TAPS, 'register_dense_head'),
    ):
        head = type(getattr(detector, name, None))
        known = [cls for tap in taps for cls in tap.known_heads]
        if head not in known:
            parent = next((cls.__name__ for cls in head.__mro__ if cls in known), None)
            if parent is not None:
                return (
                    f'it derives from {parent}; where it classifies as that does, '
                    f'calkd_det.taps.{register}({head.__name__}) lets it be read'
                )
    return None
