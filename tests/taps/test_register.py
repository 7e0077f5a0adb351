"""Heads of a user's own: registered in one line, and checked before they are believed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dense_cases
import helpers
import pytest
import torch
import two_stage_cases
from cases import Case
from mmdet.models.dense_heads import AnchorFreeHead, FSAFHead, RetinaHead, YOLOXHead
from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead
from mmdet.models.utils import multi_apply
from mmdet.registry import MODELS
from mmengine.hub import get_config
from mmengine.structures import InstanceData
from torch import Tensor, nn

from calkd_det.errors import ConfigError
from calkd_det.taps import (
    CLASS,
    CLASS_AND_BOX,
    TAPS,
    Branch,
    DenseHeadTap,
    MaskQueryTap,
    QueryTap,
    find_tap,
    find_taps,
    register_dense_head,
    register_roi_head,
    register_tap,
)
from calkd_det.taps.self_test import check_answers


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    taps, tables = list(TAPS), []
    for tap in (tap for tap in taps if not isinstance(tap, (QueryTap, MaskQueryTap))):
        table = tap.branches if isinstance(tap, DenseHeadTap) else tap.roi_heads
        tables.append((table, copy.copy(table)))
    yield
    TAPS[:] = taps
    for table, before in tables:
        table.clear()
        table.update(before) if isinstance(table, dict) else table.extend(before)


# Heads


@MODELS.register_module()
class SameRetinaHead(RetinaHead):
    """Classifies as its parent."""


@MODELS.register_module()
class RenamedRetinaHead(RetinaHead):
    """Its classifier has another name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        init_cfg = dict(type='Normal', layer='Conv2d', std=0.01)
        super().__init__(*args, init_cfg=init_cfg, **kwargs)

    def _init_layers(self) -> None:
        super()._init_layers()
        self.my_cls = self.retina_cls
        del self.retina_cls

    def forward_single(self, x: Tensor) -> tuple[Tensor, Tensor]:
        cls_feat, reg_feat = x, x
        for conv in self.cls_convs:
            cls_feat = conv(cls_feat)
        for conv in self.reg_convs:
            reg_feat = conv(reg_feat)
        return self.my_cls(cls_feat), self.retina_reg(reg_feat)


@MODELS.register_module()
class SharpRetinaHead(RetinaHead):
    """Multiplies the logits after its classifier."""

    def forward_single(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, boxes = super().forward_single(x)
        return 1.01 * logits, boxes


@MODELS.register_module()
class MovedBoxesRetinaHead(RetinaHead):
    """Moves the boxes after its coder has decoded them."""

    def _bbox_post_process(self, results: InstanceData, *args: Any, **kwargs: Any) -> InstanceData:
        results.bboxes = results.bboxes + 1
        return super()._bbox_post_process(results, *args, **kwargs)


@MODELS.register_module()
class ScaledRetinaHead(RetinaHead):
    """Has an objectness that a start near 0 hides: all of its logits are near the classifier's."""

    def _init_layers(self) -> None:
        super()._init_layers()
        self.objectness = nn.Conv2d(self.in_channels, 1, 1)
        nn.init.zeros_(self.objectness.weight)
        nn.init.zeros_(self.objectness.bias)

    def forward_single(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, boxes = super().forward_single(x)
        return logits + self.objectness(x), boxes


@MODELS.register_module()
class ReorderingRetinaHead(RetinaHead):
    """Gives its loss the rows in another order than the maps have."""

    def loss_by_feat_single(self, cls_score: Tensor, *args: Any, **kwargs: Any) -> tuple:
        return super().loss_by_feat_single(cls_score.flip(-1), *args, **kwargs)


@MODELS.register_module()
class OwnBoxesHead(AnchorFreeHead):
    """Derives from a base that decodes no boxes itself."""

    def __init__(self, num_classes: int, in_channels: int, **kwargs: Any) -> None:
        names = ('feat_channels', 'stacked_convs', 'strides', 'norm_cfg')
        own = {name: value for name, value in kwargs.items() if name in names}
        super().__init__(num_classes, in_channels, **own)

    def forward(self, x: tuple[Tensor, ...]) -> tuple[list[Tensor], list[Tensor]]:
        return multi_apply(lambda level: self.forward_single(level)[:2], x)

    def loss_by_feat(self, *args: Any, **kwargs: Any) -> dict:
        return {}

    def get_targets(self, *args: Any, **kwargs: Any) -> tuple:
        return ()


@MODELS.register_module()
class SameYOLOXHead(YOLOXHead):
    """Classifies as its parent."""


@MODELS.register_module()
class SameRoIHead(StandardRoIHead):
    """Classifies as its parent."""


@MODELS.register_module()
class BlurredRoIHead(StandardRoIHead):
    """Changes the features before its box head."""

    def _bbox_forward(self, x: tuple[Tensor, ...], rois: Tensor) -> dict[str, Tensor]:
        return super()._bbox_forward(tuple(feat.relu() for feat in x), rois)


@MODELS.register_module()
class SameCascadeRoIHead(CascadeRoIHead):
    """Classifies as its parent."""


@MODELS.register_module()
class SameBoxHead(Shared2FCBBoxHead):
    """Classifies as its parent."""


@MODELS.register_module()
class BoxesFirstHead(Shared2FCBBoxHead):
    """Its class logits read its boxes, which a teacher does not compute."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, boxes = super().forward(x)
        return logits + boxes.mean(dim=1, keepdim=True), boxes


def dense(head: str, name: str = 'RetinaNet') -> nn.Module:
    return helpers.build(dense_cases.detector_config(name, type=head))


def two_stage(roi_head: str | None = None, box_head: str | None = None) -> nn.Module:
    model = helpers.detector_config()
    if roi_head:
        model.roi_head.type = roi_head
    if box_head:
        model.roi_head.bbox_head.type = box_head
    return helpers.build(model)


# Registered


def test_an_unregistered_subclass_is_told_how() -> None:
    with pytest.raises(ConfigError, match=r'register_dense_head\(SameRetinaHead\) lets it be read'):
        find_tap(dense('SameRetinaHead'), 'model')
    with pytest.raises(ConfigError, match=r'it derives from StandardRoIHead; .*register_roi_head'):
        find_tap(two_stage('SameRoIHead'), 'model')


def test_a_refused_head_is_not_told_to_register() -> None:
    assert issubclass(FSAFHead, RetinaHead)
    detector = nn.Module()
    detector.bbox_head = FSAFHead.__new__(FSAFHead)
    nn.Module.__init__(detector.bbox_head)
    with pytest.raises(ConfigError, match='with FSAFHead: it chooses the level'):
        find_tap(detector, 'model')


@pytest.mark.parametrize(
    ('head', 'branch'),
    [('SameRetinaHead', None), ('RenamedRetinaHead', Branch('cls_convs', 'my_cls'))],
)
def test_a_registered_dense_head_teaches_and_learns(
    head: str, branch: Branch | None, tmp_path: Path
) -> None:
    assert register_dense_head(MODELS.get(head), branch) is MODELS.get(head)
    cfg = dense_cases.detector_config('RetinaNet', type=head)
    torch.save(dict(state_dict=helpers.build(cfg, seed=1).state_dict()), tmp_path / 'teacher.pth')
    student = copy.deepcopy(cfg)
    student.type = 'CalKDRetinaNet'
    student.teacher = dict(
        config=dict(model=cfg.to_dict()), checkpoint=str(tmp_path / 'teacher.pth')
    )
    student.distillation = dict(type='BinaryKDLoss')
    detector = helpers.build(student)
    detector.init_weights()
    assert helpers.loss(detector.train(), helpers.batch())['loss_kd'] > 0


def test_a_subclass_of_yolox_is_read_as_that_is() -> None:
    register_dense_head(SameYOLOXHead)
    assert 'given an object' in str(
        find_tap(detector := dense('SameYOLOXHead', 'YOLOX'), 'model').geometry(detector)
    )


@pytest.mark.parametrize(
    ('roi_head', 'config'),
    [('SameRoIHead', two_stage_cases.FASTER), ('SameCascadeRoIHead', two_stage_cases.CASCADE)],
)
def test_a_registered_roi_head_is_read(roi_head: str, config: str) -> None:
    assert register_roi_head(MODELS.get(roi_head)) is MODELS.get(roi_head)
    register_roi_head(MODELS.get(roi_head))  # a module that is imported again
    detector = helpers.build(two_stage_cases.small(config, roi_head=dict(type=roi_head)))
    assert find_tap(detector, 'model').classifiers(detector)


def test_a_tap_of_ones_own_comes_first() -> None:
    class OwnTap(DenseHeadTap):
        def is_tried(self, detector: nn.Module) -> bool:
            return False

    tap = register_tap(OwnTap())
    assert find_tap(dense('RetinaHead'), 'model') is tap


# Refused


@pytest.mark.parametrize(
    ('head', 'branch', 'reason'),
    [
        ('SharpRetinaHead', None, r'differ from those that .* by up to 0\.0'),
        ('ScaledRetinaHead', None, r'differ from those that'),
        ('RenamedRetinaHead', None, r"raised AttributeError.*'retina_cls'"),
        ('SameRetinaHead', Branch('reg_convs', 'retina_cls'), r'differ from those that'),
        ('SameRetinaHead', Branch('cls_convs', 'retina_reg'), r'it raised|differ from'),
        ('SameRetinaHead', Branch('cls_conv', 'retina_cls'), r"raised AttributeError.*'cls_conv'"),
    ],
)
def test_a_head_that_classifies_otherwise_is_refused(
    head: str, branch: Branch | None, reason: str
) -> None:
    register_dense_head(MODELS.get(head), branch)
    with pytest.raises(ConfigError, match=f'^model: {head} cannot be read: .*{reason}'):
        find_tap(dense(head), 'model')


def test_a_roi_head_that_classifies_otherwise_is_refused() -> None:
    register_roi_head(BlurredRoIHead)
    with pytest.raises(ConfigError, match=r'^model: BlurredRoIHead with .* differ from'):
        find_tap(two_stage('BlurredRoIHead'), 'model')


def test_a_head_that_decodes_boxes_otherwise_is_refused_where_these_are_asked() -> None:
    register_dense_head(MovedBoxesRetinaHead)
    register_dense_head(SameRetinaHead)
    find_taps(dense('SameRetinaHead'), CLASS_AND_BOX, 'model')
    detector = dense('MovedBoxesRetinaHead')
    find_taps(detector, CLASS, 'model')
    with pytest.raises(ConfigError, match=r'^model: MovedBoxesRetinaHead cannot .* its boxes diff'):
        find_taps(detector, CLASS_AND_BOX, 'model')


def test_boxes_of_a_head_that_derives_from_no_known_one_are_refused() -> None:
    register_dense_head(OwnBoxesHead, Branch('cls_convs', 'conv_cls'))
    with pytest.raises(ConfigError, match=r'not its boxes: how it decodes them is not known'):
        find_taps(dense('OwnBoxesHead', 'FCOS'), CLASS_AND_BOX, 'model')


def test_a_box_head_of_ones_own_is_checked_unregistered() -> None:
    find_tap(two_stage(box_head='SameBoxHead'), 'model')
    with pytest.raises(ConfigError, match=r'RoIHead with BoxesFirstHead cannot .* it raised'):
        find_tap(two_stage(box_head='BoxesFirstHead'), 'model')


def test_rows_in_another_order_are_refused_in_the_first_step() -> None:
    register_dense_head(ReorderingRetinaHead)
    detector = dense('ReorderingRetinaHead').train()
    tap = find_tap(detector, 'model')
    with (
        pytest.raises(ConfigError, match=r'ReorderingRetinaHead cannot be read: what its loss'),
        tap.record(detector),
    ):
        helpers.loss(detector, helpers.batch())


@pytest.mark.parametrize(
    ('register', 'given', 'reason'),
    [
        (register_dense_head, RetinaHead, 'RetinaHead is known already'),
        (register_roi_head, StandardRoIHead, 'StandardRoIHead is known already'),
        (register_dense_head, 'MyHead', "'MyHead' is none"),
        (register_dense_head, nn.Linear, 'derives from no dense head .* Branch'),
        (register_roi_head, nn.Linear, 'derives from no RoI head .* register_tap'),
        (register_tap, DenseHeadTap, 'an instance of a subclass of Tap'),
    ],
)
def test_what_cannot_be_registered(register: Any, given: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        register(given)


# The check itself


ALL = [*two_stage_cases.CASES, *two_stage_cases.READ, *dense_cases.CASES, *dense_cases.READ]


@pytest.mark.parametrize('case', ALL, ids=lambda case: case.name)
def test_every_head_that_is_built_in_passes(case: Case) -> None:
    detector = helpers.build(case.student)
    tap = find_tap(detector, 'model')
    assert tap.is_tried(detector)
    check_answers(tap, detector, 'model', tap.kinds(detector))


def test_the_check_runs_once_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    register_dense_head(SameRetinaHead)
    detector = dense('SameRetinaHead').train()
    calls: list[nn.Module] = []
    example = DenseHeadTap.example
    monkeypatch.setattr(
        DenseHeadTap, 'example', lambda tap, twin: calls.append(twin) or example(tap, twin)
    )
    weights = copy.deepcopy(detector.state_dict())
    state = torch.get_rng_state()
    tap = find_tap(detector, 'model')
    assert find_tap(detector, 'model') is tap
    assert len(calls) == 1
    assert torch.equal(torch.get_rng_state(), state)
    assert detector.training
    assert detector.bbox_head.training
    after = detector.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], weights[name]) for name in weights)
    find_tap(copy.deepcopy(detector), 'model')  # a copy may be changed
    assert len(calls) == 2


# What a detector without a supported head is told


@pytest.mark.parametrize(
    ('config', 'words'),
    [
        ('rpn/rpn_r50_fpn_1x_coco.py', 'a RPN with RPNHead: it tells objects'),
        ('solo/solo_r50_fpn_1x_coco.py', 'a SOLO with SOLOHead as its mask_head: it classifies'),
        (
            'soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.01-coco.py',
            'a SoftTeacher with no head of its own, but .*FasterRCNN as its student',
        ),
    ],
)
def test_a_detector_is_named_with_the_head_that_it_has(config: str, words: str) -> None:
    model = get_config(f'mmdet::{config}').model
    model.get('backbone', model.get('detector', {}).get('backbone')).init_cfg = None
    with pytest.raises(ConfigError, match=words):
        find_tap(helpers.build(model), 'model')


def test_an_rpn_beside_nothing_is_named_by_its_attribute() -> None:
    detector = two_stage()
    detector.roi_head = None
    words = 'a FasterRCNN with RPNHead as its rpn_head: it tells objects from background'
    with pytest.raises(ConfigError, match=words):
        find_tap(detector, 'model')
