"""Check that a tap answers as a head does that the tests of the taps do not run on."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from calkd_det.errors import ConfigError
from calkd_det.knowledge import HeadAnswer, HeadSamples, Kind
from calkd_det.taps.base import BEFORE_HEADS, CLASS, Tap

# In standard deviations of the logits or boxes. The same operations in float32 may differ in their
# order.
TOLERANCE = 1e-4

# Detectors by the kinds that were checked.
_checked: defaultdict[frozenset[Kind], WeakSet[nn.Module]] = defaultdict(WeakSet)


@torch.no_grad()
def check_answers(tap: Tap, detector: nn.Module, key: str, kinds: frozenset[Kind] = CLASS) -> None:
    """Check once for a detector that a tap computes the same values as the whole head.

    A copy of the heads with random weights runs on random features, on the CPU. Neither the
    detector nor the random state changes.

    Args:
        tap: A tap that supports the detector.
        detector: Any detector whose heads can be copied.
        key: How an error message names the detector.
        kinds: What is compared: class logits, or boxes as well.

    Raises:
        ConfigError: The tap cannot read the head, or computes other logits or boxes.
    """
    if detector in _checked[kinds]:
        return
    advice = _DENSE_ADVICE if getattr(detector, 'roi_head', None) is None else _ROI_ADVICE
    try:
        with torch.random.fork_rng(devices=[]), torch.autocast('cpu', enabled=False):
            torch.manual_seed(0)
            twin = _copy_heads(detector)
            feats, groups = tap.example(twin) if kinds == CLASS else tap.example(twin, kinds)
            tap.keep(twin, kinds)
            feats = tap.prepare(twin, feats)
            answers = [tap.answer(twin, feats, group) for group in groups]
    # The head may be a user's code and raise anything; the message names the head.
    except Exception as error:
        raise ConfigError(
            f'{key}: {_describe(detector)} cannot be read: on random features it raised '
            f'{type(error).__name__}: {error}. {advice}'
        ) from error
    for group, answer in zip(groups, answers):
        for what, difference in _differences(answer, group).items():
            if not difference <= TOLERANCE:
                raise ConfigError(
                    f'{key}: {_describe(detector)} cannot be read: on random features {what} '
                    f'differ from those that the head itself computes by up to {difference:.2g} '
                    f'of their standard deviation. {advice}'
                )
    _checked[kinds].add(detector)


def _differences(answer: HeadAnswer, samples: HeadSamples) -> dict[str, float]:
    """Return the largest difference of an answer from what the head computes, by what it is of."""
    differences = {
        'the logits of its classification branch': largest_difference(answer.logits, samples.logits)
    }
    if samples.boxes is not None:
        # The head clips its boxes to the image.
        boxes = [head.boxes.boxes.clamp(min=0) for head in (answer, samples)]
        differences['its boxes'] = largest_difference(*boxes)
    return differences


_DENSE_ADVICE = (
    'Name the branch that classifies, register_dense_head(MyHead, Branch(convs=..., '
    'classifier=...)); a head that classifies in another way than its parent needs a Tap of its '
    'own, register_tap(MyTap())'
)
_ROI_ADVICE = (
    'A teacher computes classes without boxes; a RoI head or box head that classifies in another '
    'way than its parent needs a Tap of its own, register_tap(MyTap())'
)


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference of two tensors, in standard deviations of the second.

    It is infinite where the shapes differ or a value is not finite.

    Args:
        ours: Logits or boxes, float, of any shape.
        theirs: Those to compare with, float.
    """
    if ours.shape != theirs.shape or not (ours.isfinite().all() and theirs.isfinite().all()):
        return math.inf
    difference = float((ours.float() - theirs.float()).abs().max()) if len(ours) else 0.0
    return difference / max(float(theirs.float().std(correction=0)), 1e-12) if difference else 0.0


def _copy_heads(detector: nn.Module) -> nn.Module:
    """Return the detector's heads on the CPU, in eval mode, with random float32 weights."""
    twin = copy.copy(detector)
    children = {
        name: child for name, child in detector._modules.items() if name not in BEFORE_HEADS
    }
    twin._modules = copy.deepcopy(children)
    for module in filter(None, twin._modules.values()):
        module.cpu().float()
        _randomise(module)
    # Not twin.eval(), because a detector may override train().
    for module in filter(None, twin._modules.values()):
        module.eval()
    return twin


def _randomise(module: nn.Module) -> None:
    """Give every weight a random value.

    With mmdet's initial weights all logits are nearly the same.
    """
    for parameter in module.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=math.sqrt(2 / max(1, parameter[0].numel())))
        else:
            parameter.uniform_(0.5, 1.5)
    for child in module.modules():
        if isinstance(child, _BatchNorm) and child.running_var is not None:
            child.running_mean.uniform_(-0.5, 0.5)
            child.running_var.uniform_(0.5, 1.5)


def _describe(detector: nn.Module) -> str:
    """Return the class names of a detector's heads for an error message."""
    roi_head = getattr(detector, 'roi_head', None)
    if roi_head is None:
        return type(getattr(detector, 'bbox_head', detector)).__name__
    box_head = getattr(roi_head, 'bbox_head', None)
    box_heads = box_head if isinstance(box_head, nn.ModuleList) else [box_head]
    names = dict.fromkeys(type(head).__name__ for head in box_heads)
    return f'{type(roi_head).__name__} with {", ".join(names)}'
