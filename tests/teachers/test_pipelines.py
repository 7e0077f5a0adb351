from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import helpers
import pytest
from mmcv.transforms import Normalize, RandomApply
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmengine.config import ConfigDict
from mmengine.dataset import BaseDataset, ConcatDataset, RepeatDataset
from torch import nn

from calkd_det.teachers import pipelines
from calkd_det.teachers.frozen_teacher import FrozenTeacher
from calkd_det.teachers.pipelines import normalisations, warn_of_pipelines

NORM: dict[str, Any] = dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], to_rgb=False)
FOUND = {((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), False)}
TRANSFORM = dict(type='Normalize', **NORM)


def images(*transforms: Any) -> BaseDataset:
    return BaseDataset(pipeline=list(transforms), lazy_init=True)


def data(*pipeline: Any) -> dict:
    return dict(type='CocoDataset', metainfo=dict(classes=('cat', 'dog')), pipeline=list(pipeline))


LOAD = dict(type='LoadImageFromFile')
IMAGES = images(Normalize(**NORM))


@pytest.mark.parametrize(
    'dataset',
    [
        data(LOAD, TRANSFORM),
        data(LOAD, dict(type='mmcv.Normalize', **NORM)),
        data(LOAD, dict(type=Normalize, **NORM)),
        data(dict(type='RandomApply', transforms=[TRANSFORM])),
        ConfigDict(type='RepeatDataset', times=2, dataset=data(TRANSFORM)),
        dict(type='ConcatDataset', datasets=[data(TRANSFORM), data(TRANSFORM)]),
        dict(type='MultiImageMixDataset', dataset=data(LOAD), pipeline=[TRANSFORM]),
        IMAGES,
        images(RandomApply(dict(TRANSFORM))),
        RepeatDataset(IMAGES, 2, lazy_init=True),
        ConcatDataset([IMAGES, images()], lazy_init=True),
    ],
)
def test_normalisation_is_found_in_every_data_set(dataset: Any) -> None:
    assert normalisations(dataset) == FOUND


def test_what_does_not_normalise_is_empty_and_what_is_not_known_is_none() -> None:
    assert normalisations(data(LOAD, dict(type='PackDetInputs'))) == set()
    assert normalisations(images()) == set()
    assert normalisations(None) is None


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    messages: list[str] = []
    monkeypatch.setattr(pipelines, 'print_log', lambda message, **kwargs: messages.append(message))
    return messages


def detector(normalises: bool) -> nn.Module:
    module = nn.Module()
    norm = dict(mean=[1.0], std=[2.0]) if normalises else {}
    module.data_preprocessor = DetDataPreprocessor(**norm)
    return module


YES, NO, UNKNOWN = data(TRANSFORM), data(LOAD), None
OTHER = data(dict(TRANSFORM, to_rgb=True))


@pytest.mark.parametrize(
    ('student', 'student_data', 'teacher', 'teacher_data', 'expected'),
    [
        # Only one of the two preprocessors normalises.
        (False, YES, True, NO, True),
        (False, YES, True, UNKNOWN, True),
        (True, NO, False, YES, True),
        (True, UNKNOWN, False, YES, True),
        # The pipelines differ.
        (False, YES, False, NO, True),
        (False, YES, False, OTHER, True),
        (True, YES, True, NO, True),
        # They are alike, or nothing says that they are not.
        (False, YES, False, YES, False),
        (True, NO, True, NO, False),
        (True, NO, True, UNKNOWN, False),
        (True, UNKNOWN, True, NO, False),
        (True, UNKNOWN, True, UNKNOWN, False),
        (True, NO, False, NO, False),
        (True, NO, False, UNKNOWN, False),
        (False, YES, False, UNKNOWN, False),
        (False, UNKNOWN, False, YES, False),
    ],
)
def test_pipelines_that_normalise_differently_are_warned_of(
    student: bool,
    student_data: Any,
    teacher: bool,
    teacher_data: Any,
    expected: bool,
    warned: list[str],
) -> None:
    warn_of_pipelines(detector(student), detector(teacher), student_data, teacher_data)
    assert len(warned) == expected


def test_the_warning_names_both_sides_and_the_keys(warned: list[str]) -> None:
    warn_of_pipelines(detector(False), detector(True), YES, UNKNOWN)
    assert (
        '(student: mean [1.0, 2.0, 3.0], std [4.0, 5.0, 6.0] in the pipeline, none in '
        'data_preprocessor; teacher: not known in the pipeline, mean and std in data_preprocessor)'
    ) in warned[0]
    assert 'Take Normalize out of the training pipeline and give its mean and std to' in warned[0]


def test_the_teachers_own_config_says_how_it_was_trained(
    teacher_config: ConfigDict, teacher: tuple[nn.Module, Path], warned: list[str]
) -> None:
    model = copy.deepcopy(teacher_config)
    model.data_preprocessor.update(mean=None, std=None)
    student = helpers.build(helpers.detector_config())
    for dataset, expected in ((NO, 0), (YES, 1)):
        dataset = dict(dataset, metainfo=dict(classes=helpers.CLASSES))
        config = dict(model=model.to_dict(), train_dataloader=dict(dataset=dataset))
        FrozenTeacher(config, str(teacher[1])).build(student, helpers.CLASSES, NO)
        assert len(warned) == expected
