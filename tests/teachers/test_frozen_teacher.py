"""Loading the teacher: what fits is matched, what does not stops before the first step."""

from __future__ import annotations

import copy
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config
from mmengine.logging import HistoryBuffer
from torch import nn

from calkd_det.errors import ConfigError, TeacherError
from calkd_det.teachers import FrozenTeacher
from calkd_det.teachers.source import read_source

Teacher = tuple[nn.Module, Path]


def init(cfg: ConfigDict) -> nn.Module:
    """Builds a detector and does what Runner.train does before its first step."""
    detector = helpers.build(cfg)
    detector.init_weights()
    return detector


def logits_of(detector: nn.Module) -> torch.Tensor:
    """The logits of the built teacher on fixed RoIs."""
    data = detector.data_preprocessor(helpers.batch(), True)
    rois = torch.tensor([[0, 4.0, 4, 40, 40], [1, 10.0, 20, 60, 70]])
    network = detector.teacher.network
    with torch.no_grad():
        feats = network.detector.extract_feat(data['inputs'])
        return network.detector.roi_head._bbox_forward(feats, rois)['cls_score']


# Files that fit


def as_published(content: dict) -> Any:
    return content


def as_state_dict(content: dict) -> Any:
    return content['state_dict']


def as_ddp(content: dict) -> Any:
    prefixed = OrderedDict((f'module.{k}', v) for k, v in content['state_dict'].items())
    return dict(content, state_dict=prefixed)


def as_runner(content: dict) -> Any:
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    return dict(content, message_hub=dict(log_scalars={'train/loss': history}), optimizer={})


@pytest.mark.parametrize('form', [as_published, as_state_dict, as_ddp, as_runner])
def test_every_form_of_checkpoint_fills_the_teacher(
    form: Any, teacher_config: ConfigDict, teacher: Teacher, tmp_path: Path
) -> None:
    path = tmp_path / 'teacher.pth'
    torch.save(form(torch.load(teacher[1])), path)
    expected = init(helpers.distilled_config(teacher_config, teacher[1]))
    loaded = init(helpers.distilled_config(teacher_config, path))
    assert torch.equal(logits_of(loaded), logits_of(expected))


@pytest.mark.parametrize('form', ['path', 'whole config', 'model', 'another CalKD config'])
def test_every_form_of_config_builds_the_same_teacher(
    form: str, teacher_config: ConfigDict, teacher: Teacher, tmp_path: Path
) -> None:
    plain = helpers.distilled_config(teacher_config, teacher[1])
    expected = logits_of(init(plain))
    model = teacher_config.to_dict()
    if form == 'path':
        config: Any = str(tmp_path / 'teacher.py')
        Config(dict(model=model)).dump(config)
    elif form == 'whole config':
        config = dict(model=model)
    elif form == 'model':
        config = model
    else:
        own = dict(config='never_read.py', checkpoint='never_read.pth')
        config = dict(model, type='CalKDFasterRCNN', teacher=own, distillation=dict(type='KDLoss'))
    plain.teacher.config = config
    assert torch.equal(logits_of(init(plain)), expected)


def test_the_zoo_lists_the_checkpoint_of_an_mmdet_config() -> None:
    name = 'mmdet::faster_rcnn/faster-rcnn_r101_fpn_ms-3x_coco.py'
    source = read_source(name, None)
    assert source.checkpoint == get_config(name, pretrained=True).model_path
    assert source.checkpoint.startswith('https://')
    assert source.model.backbone.depth == 101
    assert len(source.classes) == 80
    assert source.classes[0] == 'person'


def test_the_folded_teacher_answers_like_the_plain_one(
    teacher_config: ConfigDict, teacher: Teacher
) -> None:
    detector = init(helpers.distilled_config(teacher_config, teacher[1]))
    data = detector.data_preprocessor(helpers.batch(), True)
    rois = torch.tensor([[0, 4.0, 4, 40, 40], [1, 10.0, 20, 60, 70]])
    with torch.no_grad():
        expected = teacher[0].roi_head._bbox_forward(teacher[0].extract_feat(data['inputs']), rois)[
            'cls_score'
        ]
    assert torch.allclose(logits_of(detector), expected, rtol=1e-5, atol=1e-5)


def test_classes_come_from_the_checkpoint_and_are_matched_to_the_students(
    teacher_config: ConfigDict, tmp_path: Path
) -> None:
    names = ('bird', 'cow', 'cat', 'dog')
    model = copy.deepcopy(teacher_config)
    model.roi_head.bbox_head.num_classes = 4
    helpers.save_teacher(tmp_path / 'teacher.pth', model, classes=names)
    detector = helpers.build(helpers.distilled_config(model, tmp_path / 'teacher.pth'))
    detector.dataset_meta = dict(classes=helpers.CLASSES)
    detector.init_weights()
    class_map = detector.teacher.network.class_map
    assert [names[i] for i in class_map.columns] == list(helpers.CLASSES)
    assert class_map.background.tolist() == [1, 4]
    assert helpers.loss(detector.train(), helpers.batch())['loss_kd'].isfinite()


def test_classes_that_do_not_match_stop_the_training(
    teacher_config: ConfigDict, teacher: Teacher
) -> None:
    detector = helpers.build(helpers.distilled_config(teacher_config, teacher[1]))
    detector.dataset_meta = dict(classes=('cat', 'dog', 'horse'))
    with pytest.raises(ConfigError, match="does not know 1 of the student's classes: horse"):
        detector.init_weights()


# Files that do not fit: each names the key, the file and what is wrong with it


def truncated(content: dict, path: Path) -> None:
    torch.save(content, path)
    os.truncate(path, path.stat().st_size // 2)


def empty(content: dict, path: Path) -> None:
    path.touch()


def text(content: dict, path: Path) -> None:
    path.write_text('<html>404 not found</html>')


def half_the_keys(content: dict, path: Path) -> None:
    keys = list(content['state_dict'])
    torch.save(dict(state_dict={k: content['state_dict'][k] for k in keys[::2]}), path)


def one_key_less(content: dict, path: Path) -> None:
    content['state_dict'].pop('roi_head.bbox_head.fc_cls.bias')
    torch.save(content, path)


def foreign_keys(content: dict, path: Path) -> None:
    torch.save(dict(state_dict={'encoder.weight': torch.zeros(2)}), path)


def another_width(content: dict, path: Path) -> None:
    helpers.save_teacher(path, helpers.detector_config(base_channels=4))


def deeper(content: dict, path: Path) -> None:
    """Holds every weight that the teacher wants, in its shape, and more."""
    extra = {'backbone.layer3.7.conv1.weight': torch.zeros(1)}
    torch.save(dict(content, state_dict={**content['state_dict'], **extra}), path)


def no_weights(content: dict, path: Path) -> None:
    torch.save(dict(meta=dict(epoch=3)), path)


class Evil:
    def __reduce__(self) -> tuple:
        return (os.mkdir, ('executed',))


def code(content: dict, path: Path) -> None:
    torch.save(dict(content, payload=Evil()), path)


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (None, 'there is no file'),
        (truncated, 'truncated'),
        (empty, 'truncated'),
        (text, 'not a PyTorch checkpoint'),
        (half_the_keys, 'weights of the teacher are not in the file'),
        (one_key_less, r'1 weights of the teacher .*roi_head\.bbox_head\.fc_cls\.bias'),
        (foreign_keys, r'have no place in the teacher: encoder\.weight'),
        (another_width, r'of another shape: backbone\.conv1\.weight \(4, 3, 7, 7\)'),
        (deeper, r'1 weights of the file have no place .*layer3\.7'),
        (no_weights, 'holds no weights'),
        (code, r'holds more than weights and plain data: (posix|nt)\.mkdir\. Such objects can run'),
    ],
    ids=lambda value: getattr(value, '__name__', None),
)
def test_a_bad_checkpoint_stops_before_the_first_step(
    spoil: Any,
    message: str,
    teacher_config: ConfigDict,
    teacher: Teacher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'spoilt.pth'
    if spoil is not None:
        spoil(torch.load(teacher[1]), path)
    detector = helpers.build(helpers.distilled_config(teacher_config, path))
    with pytest.raises(TeacherError, match=message) as error:
        detector.init_weights()
    assert 'model.teacher.checkpoint' in str(error.value)
    assert 'spoilt.pth' in str(error.value)
    assert detector.teacher.network is None
    assert not (tmp_path / 'executed').exists()


def test_a_missing_or_broken_config_is_named(tmp_path: Path) -> None:
    broken = tmp_path / 'broken.py'
    broken.write_text('model = dict(')
    for config in (str(tmp_path / 'none.py'), str(broken)):
        with pytest.raises(TeacherError, match=r'model\.teacher\.config: cannot read'):
            read_source(config, 'teacher.pth')
    with pytest.raises(TeacherError, match='in the model zoo'):
        read_source('mmdet::faster_rcnn/no-such-config.py', None)


def test_a_model_that_mmdet_cannot_build_is_the_teachers(
    teacher_config: ConfigDict, teacher: Teacher
) -> None:
    model = copy.deepcopy(teacher_config)
    model.backbone.depth = 19
    with pytest.raises(TeacherError, match=r'model\.teacher\.config: mmdet cannot build'):
        init(helpers.distilled_config(model, teacher[1]))


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('paa/paa_r50_fpn_1x_coco.py', 'PAA with PAAHead: it computes .* It knows a Standard'),
        ('retinanet/retinanet_r18_fpn_1x_coco.py', 'classifies by sigmoid, the student by softmax'),
    ],
)
def test_a_head_that_cannot_be_asked_is_refused(teacher: Teacher, name: str, message: str) -> None:
    model = get_config(f'mmdet::{name}').model
    model.backbone.init_cfg = None
    with pytest.raises(ConfigError, match=rf'model\.teacher\.config: .*{message}'):
        init(helpers.distilled_config(model, teacher[1]))


# What a config can get wrong, told when the detector is built


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            dict(teacher=dict(confg='a.py')),
            r"model\.teacher has no key 'confg': did you mean 'conf",
        ),
        (dict(teacher=dict(config=None)), r'model\.teacher\.config must be the path'),
        (dict(teacher=dict(config=dict(a=1))), r"model\.teacher\.config: a dict must be .*'a'"),
        (dict(teacher=dict(checkpoint=3)), r'model\.teacher\.checkpoint must be a path'),
        (dict(teacher=dict(checkpoint=None)), r'model\.teacher\.checkpoint is None'),
        (dict(teacher='teacher.py'), r'model\.teacher must be a dict'),
        (dict(teacher=dict(calibrator=1.5)), r'model\.teacher\.calibrator must be a dict'),
        (
            dict(teacher=dict(calibrator=dict(type='TempScaling'))),
            r"model\.teacher\.calibrator\.type: nothing is registered as 'TempScaling'",
        ),
        (
            dict(teacher=dict(calibrator=dict(type='TemperatureScaling', T=2))),
            r"model\.teacher\.calibrator has no key 'T': (did you mean|known)",
        ),
        (
            dict(teacher=dict(calibrator=dict(type='TemperatureScaling', temperature=-1))),
            r'teacher\.calibrator\.temperature must be a finite number > 0.* but is -1',
        ),
        (
            dict(teacher=dict(calibrator=dict(type='KDLoss'))),
            r'model\.teacher\.calibrator\.type must be a Calibrator',
        ),
        (
            dict(distillation=dict(tua=2)),
            r"model\.distillation has no key 'tua': did you mean 'tau'",
        ),
        (dict(distillation=dict(tau=0)), r'distillation\.tau must be a finite number > 0'),
        (dict(distillation=dict(type='KLoss')), "nothing is registered as 'KLoss'; did you mean"),
        (dict(distillation=dict(type='L1Loss', tau=1)), r"model\.distillation has no key 'tau'"),
        (dict(distillation=[1]), r'model\.distillation must be a dict'),
        (dict(teacher=None), r'model\.distillation is set, but model\.teacher is not'),
    ],
)
def test_a_config_mistake_is_named_when_built(
    changes: dict, message: str, teacher_config: ConfigDict, teacher: Teacher
) -> None:
    with pytest.raises(ConfigError, match=message):
        helpers.build(helpers.distilled_config(teacher_config, teacher[1], **changes))


@pytest.mark.parametrize('value', [dict(), dict(a=1), dict(tau=2.0)])
def test_a_distillation_without_type_is_named(
    value: dict, teacher_config: ConfigDict, teacher: Teacher
) -> None:
    cfg = helpers.distilled_config(teacher_config, teacher[1])
    cfg.distillation = value
    with pytest.raises(ConfigError, match=r"dict\(type='KDLoss'"):
        helpers.build(cfg)


def test_a_loss_that_is_none_of_distillation_is_refused(
    teacher_config: ConfigDict, teacher: Teacher
) -> None:
    cfg = helpers.distilled_config(teacher_config, teacher[1])
    cfg.distillation = dict(type='L1Loss')
    with pytest.raises(ConfigError, match='must be a distillation loss such as KDLoss'):
        helpers.build(cfg)


def test_a_loss_for_other_scores_is_refused(teacher_config: ConfigDict, teacher: Teacher) -> None:
    cfg = helpers.distilled_config(
        teacher_config, teacher[1], distillation=dict(type='BinaryKDLoss')
    )
    with pytest.raises(
        ConfigError, match=r'BinaryKDLoss compares sigmoid .* classifies by softmax'
    ):
        helpers.build(cfg)
    dense = get_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py').model
    dense.backbone.init_cfg = None
    dense.update(type='CalKDRetinaNet', teacher=cfg.teacher, distillation=dict(type='KDLoss'))
    with pytest.raises(ConfigError, match=r'KDLoss compares softmax .* classifies by sigmoid'):
        helpers.build(dense)


def test_the_config_that_was_given_stays_as_it_was(
    teacher_config: ConfigDict, teacher: Teacher
) -> None:
    cfg = helpers.distilled_config(teacher_config, teacher[1])
    given = copy.deepcopy(cfg.teacher)
    holder = FrozenTeacher.from_config(cfg.teacher)
    student = init(helpers.detector_config())
    holder.build(student)
    assert cfg.teacher == given
