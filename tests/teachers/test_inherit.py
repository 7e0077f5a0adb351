"""Parts of the student start from the teacher's weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from mmengine.config import ConfigDict
from torch import nn

from calkd_det.errors import ConfigError
from calkd_det.teachers import inherit

PARTS = ['neck', 'roi_head.bbox_head']


@pytest.fixture(scope='module')
def teacher(tmp_path_factory: pytest.TempPathFactory) -> tuple[ConfigDict, Path, nn.Module]:
    """A teacher whose neck has other first convolutions than the student's."""
    cfg = helpers.detector_config(base_channels=12)
    path = tmp_path_factory.mktemp('teacher') / 'teacher.pth'
    return cfg, path, helpers.save_teacher(path, cfg)


def initialised(
    teacher: tuple[ConfigDict, Path, nn.Module],
    classes: tuple[str, ...] = (),
    loss: dict | None = None,
    inherit_parts: list[str] | None = None,
) -> nn.Module:
    """A distilled student after its initialisation, always with the same random weights."""
    cfg = helpers.distilled_config(teacher[0], teacher[1], teacher=dict(inherit=inherit_parts))
    cfg.distillation = loss or cfg.distillation
    student = helpers.build(cfg, seed=5)
    if classes:
        student.dataset_meta = dict(classes=classes)
    torch.manual_seed(6)
    student.init_weights()
    return student


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is logged of the inheritance, without the key."""
    lines: list[str] = []
    start = 'model.teacher.inherit: '
    monkeypatch.setattr(
        inherit, 'print_log', lambda text, **options: lines.append(text.removeprefix(start))
    )
    return lines


def test_tensors_of_one_shape_are_the_teachers_and_no_others(
    teacher: tuple[ConfigDict, Path, nn.Module], told: list[str]
) -> None:
    alone, state = initialised(teacher), torch.get_rng_state()
    assert told == []
    heir = initialised(teacher, inherit_parts=PARTS)
    assert torch.equal(torch.get_rng_state(), state)
    theirs = teacher[2].state_dict()
    # The teacher's maps of the backbone are wider.
    unlike = {f'neck.lateral_convs.{level}.conv.weight' for level in range(4)}
    for name, tensor in heir.state_dict().items():
        from_teacher = name.startswith(('neck.', 'roi_head.bbox_head.')) and name not in unlike
        expected = theirs[name] if from_teacher else alone.state_dict()[name]
        assert torch.equal(tensor, expected), name
    neck, head = told
    assert neck.startswith('neck starts from the teacher with 12 of 16 tensors, without ')
    assert 'lateral_convs.3.conv.weight (the teacher has no tensor of this name and shape)' in neck
    assert head == (
        'roi_head.bbox_head starts from the teacher with 8 of 8 tensors. A checkpoint of load_from '
        'or resume replaces them.'
    )


def test_the_student_trains_its_own_copy(
    teacher: tuple[ConfigDict, Path, nn.Module],
) -> None:
    heir = initialised(teacher, inherit_parts=['neck'])
    frozen = heir.teacher.network.detector.state_dict()
    before = copy.deepcopy(frozen)
    with torch.no_grad():
        for parameter in heir.parameters():
            parameter.add_(1)
    assert all(torch.equal(frozen[name], before[name]) for name in before)
    assert all(parameter.requires_grad for parameter in heir.neck.parameters())


@pytest.mark.parametrize('distillation', [dict(type='KDLoss'), dict(type='PKDLoss')])
def test_weights_of_classes_in_another_order_are_left_out(
    teacher: tuple[ConfigDict, Path, nn.Module],
    told: list[str],
    distillation: dict,
) -> None:
    alone, heir = (
        initialised(
            teacher,
            classes=tuple(reversed(helpers.CLASSES)),
            inherit_parts=parts,
            loss=distillation,
        ).state_dict()
        for parts in (None, ['roi_head.bbox_head'])
    )
    theirs = teacher[2].state_dict()
    of_classes = ('fc_cls.weight', 'fc_cls.bias', 'fc_reg.weight', 'fc_reg.bias')
    for name, tensor in heir.items():
        if name.startswith('roi_head.bbox_head.'):
            expected = alone if name.endswith(of_classes) else theirs
            assert torch.equal(tensor, expected[name]), name
    (line,) = told
    assert line.startswith('roi_head.bbox_head starts from the teacher with 4 of 8 tensors, ')
    assert f'{", ".join(of_classes)} (the teacher has other classes or another order' in line


def test_a_second_initialisation_keeps_the_trained_weights(
    teacher: tuple[ConfigDict, Path, nn.Module],
) -> None:
    heir = initialised(teacher, inherit_parts=PARTS)
    with torch.no_grad():
        for parameter in heir.parameters():
            parameter.add_(1)
    trained = copy.deepcopy(heir.state_dict())
    heir.init_weights()
    heir.teacher.network = None
    helpers.loss(heir.train(), helpers.batch())  # which loads the teacher again
    for name, parameter in heir.named_parameters():
        assert torch.equal(parameter, trained[name]), name


@pytest.mark.parametrize(
    ('parts', 'sentence'),
    [
        ('neck', 'must be a list of dotted names'),
        ([3], 'must be a list of dotted names'),
        (['neck', 'neck'], "names 'neck' twice"),
        (['roi_head.bbox_head', 'roi_head'], "names 'roi_head.bbox_head' twice"),
    ],
)
def test_a_wrong_value_is_refused_when_the_student_is_built(
    teacher: tuple[ConfigDict, Path, nn.Module], parts: Any, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=f'^model.teacher.inherit .*{sentence}'):
        helpers.build(helpers.distilled_config(teacher[0], teacher[1], teacher=dict(inherit=parts)))


@pytest.mark.parametrize(
    ('part', 'sentence'),
    [
        ('nek', "the student has no part 'nek'; did you mean 'neck'"),
        ('roi_head.bboxhead', "no part 'roi_head.bboxhead'; did you mean 'roi_head.bbox_head'"),
        ('x', "no part 'x'; known: backbone, data_preprocessor, neck, roi_head, rpn_head"),
        ('data_preprocessor', "no tensor of 'data_preprocessor' can be taken"),
    ],
)
def test_a_part_that_cannot_be_inherited_is_refused(
    teacher: tuple[ConfigDict, Path, nn.Module], part: str, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        initialised(teacher, inherit_parts=[part])


def test_a_part_of_other_shapes_is_refused(tmp_path: Path) -> None:
    cfg = helpers.detector_config()
    cfg.roi_head.bbox_head.fc_out_channels = 24
    teacher = cfg, tmp_path / 'teacher.pth', helpers.save_teacher(tmp_path / 'teacher.pth', cfg)
    with pytest.raises(ConfigError, match=r'tensor of .* can be taken'):
        initialised(teacher, inherit_parts=['roi_head.bbox_head.shared_fcs.1'])
