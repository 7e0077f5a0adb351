"""Mixed precision: the plain detector's step, the loss in float32, the teacher in its own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from mmcv.ops import RoIAlign
from mmcv.ops.nms import NMSop
from mmengine.config import ConfigDict
from torch import Tensor, nn

from calkd_det.detectors import CalKDFasterRCNN
from calkd_det.errors import ConfigError
from calkd_det.losses.kd_loss import kd_loss

Teacher = tuple[nn.Module, Path]


@pytest.fixture
def ops_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """mmcv's RoIAlign and NMS take lower precision on a GPU alone."""
    align, nms = RoIAlign.forward, NMSop.forward

    def align_in_float32(self: nn.Module, feats: Tensor, rois: Tensor) -> Tensor:
        return align(self, feats.float(), rois.float()).to(feats.dtype)

    def nms_in_float32(ctx: Any, boxes: Tensor, scores: Tensor, *args: Any) -> Tensor:
        return nms(ctx, boxes.float(), scores.float(), *args)

    monkeypatch.setattr(RoIAlign, 'forward', align_in_float32)
    monkeypatch.setattr(NMSop, 'forward', staticmethod(nms_in_float32))


@pytest.fixture
def distilled(teacher_config: ConfigDict, teacher: Teacher) -> CalKDFasterRCNN:
    return build(teacher_config, teacher)


def build(teacher_config: ConfigDict, teacher: Teacher, **keys: Any) -> CalKDFasterRCNN:
    cfg = helpers.distilled_config(teacher_config, teacher[1], teacher=keys)
    detector = helpers.build(cfg)
    detector.init_weights()
    return detector.train()


def step(detector: nn.Module, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    detector.zero_grad()
    torch.manual_seed(5)
    with torch.autocast('cpu', dtype, enabled=dtype is not None):
        losses = helpers.loss(detector, helpers.batch())
    total, logs = detector.parse_losses(losses)
    total.backward()
    return logs


@pytest.mark.usefixtures('ops_of_a_gpu')
def test_autocast_is_the_plain_step_and_near_float32(distilled: CalKDFasterRCNN) -> None:
    plain = helpers.build(helpers.detector_config()).train()
    plain.load_state_dict(distilled.state_dict())
    for detector in (distilled, plain):  # the RoIs are the objects: no other ones by rounding
        detector.train_cfg.rpn_proposal.max_per_img = 0
    exact, rounded = step(distilled), step(distilled, torch.bfloat16)
    for key, value in step(plain, torch.bfloat16).items():
        assert key == 'loss' or torch.equal(value, rounded[key]), key
    assert rounded['loss_kd'].dtype == torch.float32
    for key, value in exact.items():
        if 'loss' in key:
            assert rounded[key].item() == pytest.approx(value.item(), rel=0.1, abs=0.02), key
    assert all(p.grad is None or p.grad.isfinite().all() for p in distilled.parameters())


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_the_loss_is_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher = (torch.randn(2, 64, 5) * 6).to(dtype)
    weights = torch.ones(64, dtype=dtype)
    expected = kd_loss(student.double(), teacher.double(), weights.double())
    with torch.autocast('cpu', torch.bfloat16):
        value = kd_loss(student, teacher, weights)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.usefixtures('ops_of_a_gpu')
@pytest.mark.parametrize(
    ('precision', 'around', 'expected'),
    [
        (None, None, torch.float32),
        (None, torch.bfloat16, torch.bfloat16),
        ('float32', torch.bfloat16, torch.float32),
        ('bfloat16', None, torch.bfloat16),
        ('float16', None, torch.float16),
        ('float16', torch.bfloat16, torch.float16),
    ],
)
def test_the_teachers_precision_is_its_own(
    precision: str | None,
    around: torch.dtype | None,
    expected: torch.dtype,
    teacher_config: ConfigDict,
    teacher: Teacher,
) -> None:
    if expected == torch.float16:
        helpers.cpu_autocast(expected)
    detector = build(teacher_config, teacher, precision=precision)
    seen: list[torch.dtype] = []
    network = detector.teacher.network.detector
    for module in (network.backbone.conv1, network.roi_head.bbox_head.fc_cls):
        module.register_forward_hook(lambda m, a, o: seen.append(o.dtype))
    student: list[torch.dtype] = []
    detector.backbone.conv1.register_forward_hook(lambda m, a, o: student.append(o.dtype))
    logs = step(detector, around)
    assert seen == [expected] * 2
    assert student == [around or torch.float32]
    assert logs['loss_kd'].isfinite()


def test_a_teacher_in_lower_precision_leaves_the_students_own_losses(
    distilled: CalKDFasterRCNN, teacher_config: ConfigDict, teacher: Teacher
) -> None:
    low = build(teacher_config, teacher, precision='bfloat16')
    low.load_state_dict(distilled.state_dict())
    exact, rounded = step(distilled), step(low)
    for key in ('loss_rpn_cls', 'loss_rpn_bbox', 'loss_cls', 'loss_bbox'):
        assert torch.equal(exact[key], rounded[key])
    assert rounded['loss_kd'] != exact['loss_kd']
    assert rounded['loss_kd'].item() == pytest.approx(exact['loss_kd'].item(), rel=0.05)


@pytest.mark.usefixtures('ops_of_a_gpu')
def test_a_float32_teacher_answers_the_same_under_autocast(
    teacher_config: ConfigDict, teacher: Teacher
) -> None:
    detector = build(teacher_config, teacher, precision='float32')
    asked: list[tuple] = []
    handle = detector.teacher.network.register_forward_hook(lambda m, a, o: asked.append((a, o)))
    step(detector, torch.bfloat16)
    handle.remove()
    ((arguments, answers),) = asked
    for expected, answer in zip(detector.teacher.network(*copy.copy(arguments)), answers):
        assert torch.equal(expected.logits, answer.logits)


@pytest.mark.parametrize(
    ('value', 'hint'),
    [('bfloat61', "did you mean 'bfloat16'"), ('amp', 'known:'), (16, 'known'), ([], 'known')],
)
def test_an_unknown_precision_is_refused_when_built(
    value: Any, hint: str, teacher_config: ConfigDict, teacher: Teacher
) -> None:
    with pytest.raises(ConfigError, match=rf'model\.teacher\.precision must be .*{hint}'):
        build(teacher_config, teacher, precision=value)
