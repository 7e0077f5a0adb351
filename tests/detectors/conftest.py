"""A student and its teacher of each case, for the tests of all detectors."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any

import helpers
import pytest
from cases import Case
from pairs import CASES, Pair, distilled_config, make_teacher
from torch import nn


@pytest.fixture(scope='module', params=CASES, ids=lambda case: case.name)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    case: Case = request.param
    checkpoint = tmp_path_factory.mktemp('teacher') / 'teacher.pth'
    teacher = make_teacher(case, case.teacher, checkpoint, helpers.CLASSES)
    detector = helpers.build(distilled_config(case, checkpoint))
    detector.init_weights()
    case.sharpen(detector, seed=9)
    return Pair(case, teacher, checkpoint, detector)


@pytest.fixture
def case(pair: Pair) -> Case:
    return pair.case


@pytest.fixture
def detector(pair: Pair) -> nn.Module:
    """A distilled detector of this test's own; its teacher is that of the other tests."""
    return copy.deepcopy(pair.detector).train()


@pytest.fixture
def watched() -> Iterator[Any]:
    """Counts the runs of every module of a detector, by name."""
    handles = []

    def watch(detector: nn.Module) -> Counter[str]:
        calls: Counter[str] = Counter()
        for name, module in detector.named_modules():
            handles.append(
                module.register_forward_hook(lambda m, a, out, name=name: calls.update([name]))
            )
        return calls

    yield watch
    for handle in handles:
        handle.remove()
