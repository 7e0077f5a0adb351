"""A student and its teacher of each case, for the tests of all detectors."""

from __future__ import annotations

import copy

import helpers
import pytest
from cases import Case
from pairs import CASES, Pair, Steps, distilled_config, make_teacher, take_steps
from torch import nn


@pytest.fixture(scope='module', params=CASES, ids=lambda case: case.name)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    case: Case = request.param
    checkpoint = tmp_path_factory.mktemp('teacher') / 'teacher.pth'
    teacher = make_teacher(case, case.teacher, checkpoint, helpers.CLASSES)
    tau = dict(tau=2.0) if case.distillation['type'] == 'KDLoss' else {}
    detector = helpers.build(distilled_config(case, checkpoint, distillation=tau))
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


@pytest.fixture(scope='module')
def steps(pair: Pair) -> Steps:
    """A step of the pair's detector, and the plain student's."""
    return take_steps(pair.case, pair.detector)
