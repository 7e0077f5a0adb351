"""Configs with mistakes end in a sentence; teachers unlike the student, in right numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dense_cases
import helpers
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from scipy.special import log_softmax, logsumexp
from torch import Tensor, nn

from calkd_det.errors import CalKDError, ConfigError
from calkd_det.teachers import FrozenTeacher, folding

Teacher = tuple[nn.Module, Path]
TEMPERATURE = 1.5


# Teachers that differ from the student: the loss is the one worked out from plain detectors


def raw_logits(student: nn.Module, teacher: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """Logits that plain detectors give to the RoIs of a step of the student, in float64."""
    seen: dict[str, Tensor] = {}
    head = student.roi_head
    head.bbox_roi_extractor.register_forward_hook(lambda m, a, o: seen.update(rois=a[1]))
    head.bbox_head.fc_cls.register_forward_hook(lambda m, a, o: seen.update(logits=o))
    torch.manual_seed(5)
    helpers.loss(student, helpers.batch())
    with torch.no_grad():
        data = teacher.data_preprocessor(copy.deepcopy(helpers.batch()), True)
        feats = teacher.extract_feat(data['inputs'])
        answer = teacher.roi_head._bbox_forward(feats, seen['rois'])['cls_score']
    return seen['logits'].detach().double().numpy(), answer.double().numpy()


def expected_loss(z_s: np.ndarray, z_t: np.ndarray) -> float:
    log_s, log_t = log_softmax(z_s, axis=1), log_softmax(z_t, axis=1)
    return (np.exp(log_t) * (log_t - log_s)).sum(axis=1).mean()


def distil(
    tmp_path: Path,
    teacher_model: ConfigDict,
    classes: Sequence[str] = helpers.CLASSES,
    student_model: ConfigDict | None = None,
) -> tuple[float, np.ndarray, np.ndarray]:
    """The loss of a distilled step, and the logits of the plain student and teacher."""
    teacher = helpers.save_teacher(tmp_path / 'teacher.pth', teacher_model, classes=classes)
    plain_model = student_model or helpers.detector_config()
    distilled = helpers.distilled_config(teacher_model, tmp_path / 'teacher.pth')
    cfg = copy.deepcopy(plain_model)
    cfg.update(
        type='CalKDFasterRCNN', teacher=distilled.teacher, distillation=distilled.distillation
    )
    detector = helpers.build(cfg)
    detector.dataset_meta = dict(classes=helpers.CLASSES)
    detector.init_weights()
    helpers.sharpen_classifier(detector, seed=9)
    torch.manual_seed(5)
    loss_kd = helpers.loss(detector.train(), helpers.batch())['loss_kd']
    plain = helpers.build(plain_model)
    plain.load_state_dict(detector.state_dict())
    return loss_kd.item(), *raw_logits(plain.train(), teacher)


@pytest.mark.parametrize(
    ('classes', 'columns', 'background'),
    [
        (('bird', 'cat', 'dog'), [1, 2, 0], [3]),
        (('cow', 'bird', 'cat', 'owl', 'dog'), [2, 4, 1], [0, 3, 5]),
        (('cat', 'dog', 'bird', 'cow'), [0, 1, 2], [3, 4]),
    ],
    ids=['another order', 'more, in another order', 'more'],
)
def test_classes_of_another_order_or_number(
    classes: Sequence[str], columns: list[int], background: list[int], tmp_path: Path
) -> None:
    model = helpers.detector_config(base_channels=4, num_classes=len(classes))
    loss_kd, z_s, z_t = distil(tmp_path, model, classes)
    z_t = z_t / TEMPERATURE
    rest = logsumexp(z_t[:, background], axis=1, keepdims=True)
    mapped = np.concatenate([z_t[:, columns], rest], axis=1)
    assert loss_kd == pytest.approx(expected_loss(z_s, mapped), rel=1e-4)
    assert loss_kd > 0.01


@pytest.mark.parametrize('classes', [('cow', 'owl', 'elk'), ('cat', 'dog'), ('cat', 'dog', 'elk')])
def test_classes_that_the_teacher_lacks(classes: Sequence[str], tmp_path: Path) -> None:
    model = helpers.detector_config(base_channels=4, num_classes=len(classes))
    with pytest.raises(
        ConfigError, match=r"model\.teacher does not know . of the student's classes"
    ):
        distil(tmp_path, model, classes)


def larger_roi_features(model: ConfigDict) -> None:
    model.roi_head.bbox_roi_extractor.roi_layer.output_size = 5
    model.roi_head.bbox_head.roi_feat_size = 5


def two_levels_of_rois(model: ConfigDict) -> None:
    model.roi_head.bbox_roi_extractor.featmap_strides = [4, 8]


def larger_strides(model: ConfigDict) -> None:
    """A pyramid that begins a level later, at stride 8."""
    model.neck.start_level = 1
    model.roi_head.bbox_roi_extractor.featmap_strides = [8, 16, 32]
    model.rpn_head.anchor_generator.strides = [8, 16, 32, 64, 128]


def a_dilated_backbone(model: ConfigDict) -> None:
    model.backbone.strides = (1, 2, 2, 1)
    model.backbone.dilations = (1, 1, 1, 2)
    model.roi_head.bbox_roi_extractor.featmap_strides = [4, 8, 16, 16]


def another_head(model: ConfigDict) -> None:
    model.roi_head.bbox_head.update(type='Shared4Conv1FCBBoxHead', conv_out_channels=8)


def one_box_for_all_classes(model: ConfigDict) -> None:
    model.roi_head.bbox_head.reg_class_agnostic = True


@pytest.mark.parametrize(
    'change',
    [
        larger_roi_features,
        two_levels_of_rois,
        larger_strides,
        a_dilated_backbone,
        another_head,
        one_box_for_all_classes,
    ],
    ids=lambda change: change.__name__,
)
@pytest.mark.parametrize('whose', ['teacher', 'student'])
def test_teacher_and_student_of_different_make(change: Any, whose: str, tmp_path: Path) -> None:
    models = dict(
        teacher=helpers.detector_config(base_channels=4), student=helpers.detector_config()
    )
    change(models[whose])
    loss_kd, z_s, z_t = distil(tmp_path, models['teacher'], student_model=models['student'])
    assert loss_kd == pytest.approx(expected_loss(z_s, z_t / TEMPERATURE), rel=1e-4)
    assert loss_kd > 0.01


# Mutated configs: a clean build or a sentence, nothing from deep inside

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 300),
    st.sampled_from([float('nan'), float('inf'), -1.5, 0.5]),
    st.sampled_from(
        ['', ' ', 'x', '.', 'a.b', '::', 'mmdet::x', 'KDLoss', 'mmdet.KDLoss', 'ResNet']
    ),
    st.sampled_from(
        [[], [1], (), (1, 2, 3, 4), {}, {'a': 1}, {1: 2}, {'type': 'KDLoss'}, int, b'x']
    ),
)
QUICK = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def paths(tree: dict, prefix: tuple = ()) -> Iterator[tuple]:
    for key, value in tree.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from paths(value, (*prefix, key))


def mutate(draw: st.DataObject, tree: dict) -> dict:
    """Spoils one or two places of a config."""
    tree = copy.deepcopy(tree)
    for _ in range(draw.draw(st.integers(1, 2), label='places')):
        *parents, key = draw.draw(st.sampled_from(sorted(paths(tree), key=repr)), label='path')
        node = tree
        for parent in parents:
            node = node[parent]
        how = draw.draw(st.sampled_from(['replace'] * 4 + ['delete', 'rename', 'nest', 'add']))
        if how == 'replace':
            node[key] = copy.deepcopy(draw.draw(JUNK, label='value'))
        elif how == 'delete':
            del node[key]
        elif how == 'rename':
            node[f'{key}s'] = node.pop(key)
        elif how == 'nest':
            node[key] = {key: node[key]}
        else:
            node['extra'] = 1
    return tree


def message_of(build: Callable[[], Any]) -> str | None:
    """The message of this project's error; any other error is the test's."""
    try:
        build()
    except CalKDError as error:
        return str(error)
    return None


@pytest.fixture(scope='module')
def student_model() -> ConfigDict:
    return helpers.detector_config('CalKDFasterRCNN', base_channels=4)


@QUICK
@given(draw=st.data())
def test_a_spoilt_config_builds_or_ends_in_a_sentence(
    student_model: ConfigDict, draw: st.DataObject
) -> None:
    tree = dict(
        teacher=dict(
            config=dict(model=dict(type='FasterRCNN')),
            checkpoint='teacher.pth',
            calibrator=dict(type='TemperatureScaling', temperature=1.5),
            precision='float32',
        ),
        distillation=dict(type='KDLoss', tau=1.0, loss_weight=1.0),
    )
    spoilt = mutate(draw, tree)
    # Keys of the model itself are for the detector's class.
    own = {key: spoilt[key] for key in tree if key in spoilt}
    message = message_of(lambda: helpers.build(ConfigDict({**copy.deepcopy(student_model), **own})))
    assert message is None or 'teacher' in message or 'distillation' in message


@pytest.fixture(scope='module')
def student_and_teacher(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[nn.Module, dict, str]:
    """A student, and the whole config and the checkpoint of a teacher that fits it."""
    model = helpers.detector_config(base_channels=4)
    path = tmp_path_factory.mktemp('fuzz') / 'teacher.pth'
    helpers.save_teacher(path, model, classes=None)
    dataset = dict(type='CocoDataset', metainfo=dict(classes=helpers.CLASSES))
    config = dict(model=model.to_dict(), train_dataloader=dict(dataset=dataset))
    return helpers.build(helpers.detector_config(base_channels=4)), config, str(path)


@QUICK
@given(draw=st.data())
def test_a_spoilt_teacher_config_builds_or_ends_in_a_sentence(
    student_and_teacher: tuple[nn.Module, dict, str], draw: st.DataObject
) -> None:
    student, config, checkpoint = student_and_teacher
    spoilt = mutate(draw, config)
    message = message_of(lambda: FrozenTeacher(spoilt, checkpoint).build(student, helpers.CLASSES))
    assert message is None or 'teacher' in message


def test_a_teacher_whose_parts_do_not_go_together_is_warned_of(
    teacher_config: ConfigDict, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing proves that it cannot run: what a random image does is no error."""
    warned: list[str] = []
    monkeypatch.setattr(folding, 'print_log', lambda message, **kwargs: warned.append(message))
    model = copy.deepcopy(teacher_config)
    model.backbone.out_indices = (0, 1)
    FrozenTeacher(dict(model=model), str(teacher[1])).build(
        helpers.build(helpers.detector_config())
    )
    assert 'do not run on a random image of 3 x 128 x 128 (AssertionError' in warned[0]
    assert 'parts of model.teacher.config do not go together' in warned[0]


@pytest.mark.parametrize('metainfo', [3, 'x', dict(classes=3)])
def test_class_names_that_cannot_be_read_are_named(
    metainfo: Any, teacher_config: ConfigDict, teacher: Teacher
) -> None:
    dataset = dict(type='CocoDataset', metainfo=metainfo)
    config = dict(model=teacher_config.to_dict(), train_dataloader=dict(dataset=dataset))
    with pytest.raises(CalKDError, match=r'model\.teacher\.config: cannot read the class names'):
        FrozenTeacher(config, str(teacher[1])).build(helpers.build(helpers.detector_config()))


def test_a_mistyped_key_of_the_model_is_named(student_model: ConfigDict) -> None:
    for key, meant in (('techer', 'teacher'), ('bakbone', 'backbone')):
        with pytest.raises(CalKDError, match=f"model has no key '{key}': did you mean '{meant}'"):
            helpers.build(ConfigDict({**copy.deepcopy(student_model), key: None}))


def test_a_missing_key_is_named(student_model: ConfigDict) -> None:
    cfg = copy.deepcopy(student_model)
    cfg.update(teacher=dict(checkpoint='teacher.pth'), distillation=dict(type='KDLoss'))
    with pytest.raises(ConfigError, match=r'model\.teacher\.config is missing'):
        helpers.build(cfg)


def test_a_sigmoid_teacher_of_a_softmax_student_is_refused(
    teacher: Teacher,
) -> None:
    model = dense_cases.detector_config('RetinaNet')
    with pytest.raises(ConfigError, match=r'classifies by sigmoid, the student by softmax'):
        FrozenTeacher(dict(model=model), str(teacher[1])).build(
            helpers.build(helpers.detector_config())
        )


def test_what_is_done_without_being_asked_is_logged(
    teacher_config: ConfigDict, teacher: Teacher, tmp_path: Path
) -> None:
    model = copy.deepcopy(teacher_config)
    model.data_preprocessor.mean = [100.0, 110.0, 120.0]
    off = helpers.distilled_config(model, teacher[1], distillation=dict(loss_weight=0))
    logger = MMLogger.get_instance('told', log_file=str(tmp_path / 'log.txt'), log_level='INFO')
    helpers.build(off)
    on = helpers.build(helpers.distilled_config(model, teacher[1]))
    on.init_weights()
    for handler in logger.handlers:
        handler.flush()
    told = (tmp_path / 'log.txt').read_text()
    assert 'loss_weight is 0: no teacher is loaded, the student trains alone' in told
    assert 'The class names of the student are unknown' in told
    assert 'images re-normalised for it' in told
