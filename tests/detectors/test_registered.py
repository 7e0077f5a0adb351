"""Each detector class of mmdet has a distilled counterpart, and a user's own class gets one."""

from __future__ import annotations

import importlib
import inspect
import pickle
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helpers
import pytest
from mmdet.models.detectors import BaseDetector, RetinaNet, SoftTeacher
from mmdet.models.mot import BaseMOTModel
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.registry import Registry
from torch import nn

import calkd_det.detectors
from calkd_det.detectors import (
    CalKDFasterRCNN,
    DistillationMixin,
    UndistillableDetector,
    register_distilled,
    registered,
    undistillable,
)
from calkd_det.detectors.undistillable import reason_against_class, reason_against_signatures
from calkd_det.errors import ConfigError

CLASSES: dict[str, type] = {
    name: cls
    for name, cls in MODELS.module_dict.items()
    if inspect.isclass(cls)
    and issubclass(cls, (BaseDetector, BaseMOTModel))
    and cls.__module__.startswith('mmdet.')
}
REFUSED = {
    'BaseMOTModel': 'is a tracker that does not call',
    'ByteTrack': 'its loss is that of its detector; distil that',
    'DeepSORT': 'is a tracker that does not call',
    'DetectionTransformer': 'is an abstract class',
    'Detectron2Wrapper': 'runs a detector of Detectron2',
    'KnowledgeDistillationSingleStageDetector': 'is distilled by a teacher of its own',
    'LAD': 'is distilled by a teacher of its own',
    'Mask2FormerVideo': 'is a tracker that does not call',
    'MaskTrackRCNN': 'is a tracker that does not call',
    'OCSORT': 'its loss is that of its detector; distil that',
    'QDTrack': 'is a tracker that does not call',
    'SemiBaseDetector': 'has a teacher of its own',
    'SoftTeacher': 'has a teacher of its own',
    'StrongSORT': 'is a tracker that does not call',
}


@pytest.mark.parametrize('name', CLASSES)
def test_each_class_of_mmdet_has_a_counterpart(name: str) -> None:
    counterpart = getattr(calkd_det.detectors, f'CalKD{name}')
    assert MODELS.get(f'CalKD{name}') is counterpart
    assert counterpart.__name__ == counterpart.__qualname__ == f'CalKD{name}'
    assert counterpart.__module__ == 'calkd_det.detectors'
    assert f'``{name}``' in counterpart.__doc__
    assert pickle.loads(pickle.dumps(counterpart)) is counterpart
    assert f'CalKD{name}' in calkd_det.detectors.__all__
    if name in REFUSED:
        with pytest.raises(ConfigError, match=f'^model.type: CalKD{name} .*{REFUSED[name]}'):
            counterpart(detector=dict(type='FasterRCNN'))
    else:
        assert counterpart.__mro__[1:3] == (DistillationMixin, CLASSES[name])
        # This is not looked at when the package is imported.
        assert reason_against_signatures(CLASSES[name]) is None


def test_the_zoo_of_mmdet_is_not_small() -> None:
    assert len(CLASSES) >= 60
    assert CLASSES.keys() >= REFUSED.keys()
    assert CalKDFasterRCNN is MODELS.get('CalKDFasterRCNN')


def test_the_registry_says_why_a_class_is_refused() -> None:
    with pytest.raises(ConfigError, match='SoftTeacher has a teacher of its own'):
        MODELS.build(dict(type='CalKDSoftTeacher', detector=dict(type='FasterRCNN')))


def test_making_the_counterparts_takes_little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry('classes of mmdet')
    registry.module_dict.update(CLASSES)
    monkeypatch.setattr(registered, 'MODELS', registry)
    start = time.process_time()
    made = registered.make_counterparts('calkd_det.detectors')
    assert time.process_time() - start < 0.05  # 0.004 s here
    assert len(made) == len(CLASSES)
    assert registry.module_dict.keys() == {*CLASSES, *made}


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A user's module with a detector class, in which the counterpart is made."""
    (tmp_path / 'users_detectors.py').write_text(
        'from mmdet.models.detectors import FasterRCNN\n'
        'from mmdet.registry import MODELS\n'
        'from calkd_det.detectors import register_distilled\n\n\n'
        '@register_distilled\n'
        '@MODELS.register_module()\n'
        'class UsersRCNN(FasterRCNN):\n'
        '    """A detector of a user."""\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module('users_detectors')
    for name in ('UsersRCNN', 'CalKDUsersRCNN'):
        del MODELS.module_dict[name]
    del sys.modules['users_detectors']


def test_a_class_of_ones_own_is_distilled_after_one_line(
    own_module: Any, teacher_config: ConfigDict, teacher: tuple[nn.Module, Path]
) -> None:
    counterpart = own_module.CalKDUsersRCNN
    assert MODELS.get('CalKDUsersRCNN') is counterpart
    assert pickle.loads(pickle.dumps(counterpart)) is counterpart
    assert counterpart.__mro__[1:3] == (DistillationMixin, own_module.UsersRCNN)
    cfg = helpers.distilled_config(teacher_config, teacher[1])
    cfg.type = 'CalKDUsersRCNN'
    losses = helpers.loss(helpers.build(cfg).train(), helpers.batch())
    assert losses['loss_kd'] > 0


def test_a_name_is_given_once(own_module: Any) -> None:
    with pytest.raises(ConfigError, match='the name CalKDUsersRCNN is taken by another class'):
        register_distilled(own_module.UsersRCNN)
    with pytest.raises(ConfigError, match='the name CalKDRetinaNet is taken'):
        register_distilled(type('RetinaNet', (RetinaNet,), {}))


class OwnTeacher(RetinaNet):
    def __init__(self, *args: Any, teacher: dict, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class OneBatch(RetinaNet):
    def loss(self, batch: dict) -> dict:
        return super().loss(batch['inputs'], batch['data_samples'])


class Abstract(BaseDetector):
    pass


@pytest.mark.parametrize(
    ('detector', 'sentence'),
    [
        ('RetinaNet', "is given a class, but 'RetinaNet' is none"),
        (nn.Linear, 'Linear is no detector, it does not derive from mmdet'),
        (type('MyTeacher', (SoftTeacher,), {}), 'MyTeacher has a teacher of its own'),
        (OwnTeacher, "OwnTeacher cannot be distilled: its constructor has an argument 'teacher'"),
        (OneBatch, 'OneBatch cannot be distilled: its loss takes '),
        (Abstract, 'Abstract is an abstract class'),
        (CalKDFasterRCNN, 'CalKDFasterRCNN is a distilled detector already'),
        (calkd_det.detectors.CalKDLAD, 'CalKDLAD is a distilled detector already'),
    ],
)
def test_a_class_that_cannot_be_distilled_is_not_registered(detector: Any, sentence: str) -> None:
    before = dict(MODELS.module_dict)
    with pytest.raises(ConfigError, match=sentence):
        register_distilled(detector)
    assert MODELS.module_dict == before


def test_a_class_derived_from_mmdets_is_refused_for_its_reason() -> None:
    assert 'teacher of its own' in reason_against_class(type('Mine', (SoftTeacher,), {}))
    assert issubclass(calkd_det.detectors.CalKDSoftTeacher, UndistillableDetector)


class HoldsTeacher(RetinaNet):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teacher = nn.Linear(1, 1)


def test_a_part_named_teacher_is_found_when_the_detector_is_built() -> None:
    counterpart = type('CalKDHoldsTeacher', (DistillationMixin, HoldsTeacher), {})
    cfg = helpers.get_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py').model
    cfg.type = counterpart
    with pytest.raises(ConfigError, match="it has an attribute 'teacher' of its own"):
        MODELS.build(cfg)


@pytest.mark.parametrize(('tracker', 'is_refused'), [('QDTrack', True), ('ByteTrack', False)])
def test_a_detector_within_a_tracker_says_where_it_would_not_be_taught(
    tracker: str, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Runner:
        model = object.__new__(MODELS.get(tracker))

    monkeypatch.setattr(undistillable, 'calling_runner', Runner)
    if is_refused:
        with pytest.raises(ConfigError, match='QDTrack is a tracker that does not call its det'):
            undistillable.check_tracker(nn.Identity())
    else:
        undistillable.check_tracker(nn.Identity())
