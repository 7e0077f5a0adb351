"""Distilled detectors whose teacher is asked for boxes, too."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any

import dense_cases
import helpers
import pytest
import torch
import two_stage_cases
from mmengine.config import ConfigDict
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import calkd_det  # noqa: F401
from calkd_det.errors import ConfigError

CASES = {case.name: case for case in (*two_stage_cases.CASES, *dense_cases.CASES)}


def save(detector: nn.Module, path: Path, classes: tuple[str, ...] = helpers.CLASSES) -> None:
    meta = dict(dataset_meta=dict(classes=classes))
    torch.save(dict(meta=meta, state_dict=detector.state_dict()), path)


def distilled(
    student: ConfigDict, teacher: ConfigDict, path: Path, distillation: dict[str, Any]
) -> nn.Module:
    cfg = copy.deepcopy(student)
    cfg.type = f'CalKD{student.type}'
    cfg.teacher = dict(
        config=dict(model=teacher.to_dict()),
        checkpoint=str(path),
        calibrator=dict(type='TemperatureScaling', temperature=1.0),
    )
    cfg.distillation = distillation
    detector = helpers.build(cfg)
    detector.dataset_meta = dict(classes=helpers.CLASSES)
    return detector.train()


def freeze_batchnorm(detector: nn.Module) -> None:
    for module in detector.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


@pytest.mark.parametrize('name', ['Faster R-CNN', 'Cascade R-CNN', 'RetinaNet'])
def test_the_teachers_deltas_are_those_of_the_students_class_by_name(
    name: str, tmp_path: Path
) -> None:
    """The teacher is the student with its classes in another order, among others."""
    case = CASES[name]
    student = helpers.build(case.student)
    order = (2, 4, 0)  # of the student's classes among the teacher's
    classes = ['fish', 'cow', 'horse', 'sheep', 'mouse']
    for own, label in enumerate(order):
        classes[label] = helpers.CLASSES[own]
    cfg = copy.deepcopy(case.student)
    heads = cfg.roi_head.bbox_head if 'roi_head' in cfg else cfg.bbox_head
    for head in heads if isinstance(heads, list) else [heads]:
        head.num_classes = len(classes)
    teacher = helpers.build(cfg)
    with torch.no_grad():
        for key, value in student.state_dict().items():
            target = teacher.state_dict()[key]
            if target.shape == value.shape:
                target.copy_(value)
            elif 'fc_reg' in key:
                target.view(5, 4, -1)[list(order)] = value.view(3, 4, -1)
    path = tmp_path / 'teacher.pth'
    save(teacher, path, tuple(classes))
    detector = distilled(case.student, cfg, path, dict(bbox=dict(type='BoxKDLoss')))
    detector.init_weights()
    detector.load_state_dict(student.state_dict())
    freeze_batchnorm(detector)
    torch.manual_seed(5)
    losses = helpers.loss(detector, case.batch())
    found = {key: float(value) for key, value in losses.items() if 'loss_kd' in key}
    prefixes = ['s0.', 's1.', 's2.'] if name == 'Cascade R-CNN' else ['']
    assert list(found) == [f'{prefix}loss_kd_bbox' for prefix in prefixes]
    assert max(found.values()) < 1e-6
    if name == 'Faster R-CNN':  # the boxes of the others are the same for all classes
        detector.teacher.network.class_map.columns.copy_(torch.tensor([0, 1, 3]))
        torch.manual_seed(5)
        losses = helpers.loss(detector, case.batch())
        assert all(losses[key] > 1e-6 for key in found)


@pytest.mark.parametrize('agnostic', [(True, True), (True, False), (False, True)])
def test_class_agnostic_boxes_on_either_side(agnostic: tuple[bool, bool], tmp_path: Path) -> None:
    configs = []
    for value, width in zip(agnostic, (8, 16)):
        cfg = helpers.detector_config(base_channels=width)
        cfg.roi_head.bbox_head.reg_class_agnostic = value
        configs.append(cfg)
    path = tmp_path / 'teacher.pth'
    save(helpers.build(configs[1], seed=1), path)
    detector = distilled(*configs, path, dict(bbox=dict(type='BoxKDLoss')))
    loss = helpers.loss(detector, helpers.batch())['loss_kd_bbox']
    loss.backward()
    assert loss > 0
    assert detector.roi_head.bbox_head.fc_reg.weight.grad.any()


# mmcv has no NMS of half precision on a CPU, which two-stage detectors need.
@pytest.mark.parametrize(
    'name', ['RetinaNet', 'FCOS', 'ATSS', 'GFL', 'RTMDet', 'YOLOX', 'ATSS of GFL', 'GFL of FCOS']
)
def test_a_step_with_classes_and_boxes_is_finite_in_half_precision(
    name: str, tmp_path: Path
) -> None:
    case = CASES[name]
    path = tmp_path / 'teacher.pth'
    teacher = helpers.build(case.teacher, seed=1)
    with torch.no_grad():  # an untrained YOLOX predicts boxes of infinite size
        for part, module in teacher.named_modules():
            if re.search(r'_reg(\.\d+)?$', part) and hasattr(module, 'weight'):
                module.weight.mul_(0.01)
    save(teacher, path)
    losses = dict(cls=case.distillation, bbox=dict(type='BoxKDLoss'))
    if name == 'GFL':
        losses['ld'] = dict(type='LDLoss')
    detector = distilled(case.student, case.teacher, path, losses)
    for dtype in (torch.bfloat16, torch.float16):
        detector.zero_grad()
        with helpers.cpu_autocast(dtype):
            logs = helpers.loss(detector, case.batch())
        kd = {key: value for key, value in logs.items() if 'loss_kd' in key}
        assert {key.split('_')[-1] for key in kd} == set(losses)
        assert all(0 < value.item() < math.inf for value in kd.values())
        sum(kd.values()).backward()
        grads = [p.grad for p in detector.parameters() if p.grad is not None]
        assert grads
        assert all(grad.isfinite().all() for grad in grads)


def test_distributions_of_another_head_are_refused(tmp_path: Path) -> None:
    path = tmp_path / 'teacher.pth'
    ld = dict(bbox=dict(type='LDLoss'))
    retina = CASES['RetinaNet'].student
    with pytest.raises(
        ConfigError,
        match=r'model\.distillation\.bbox: LDLoss compares distributions.*of the student',
    ):
        distilled(retina, retina, path, ld)
    case = CASES['GFL of FCOS']
    save(helpers.build(case.teacher), path)
    with pytest.raises(
        ConfigError,
        match=r'model\.distillation\.bbox: LDLoss compares distributions.*of the teacher',
    ):
        distilled(case.student, case.teacher, path, ld).init_weights()
    case = CASES['GFL']
    teacher = copy.deepcopy(case.teacher)
    teacher.bbox_head.reg_max = 8
    save(helpers.build(teacher), path)
    with pytest.raises(ConfigError, match=r'17 bins.*the teacher 9\. Set reg_max=8'):
        distilled(case.student, teacher, path, ld).init_weights()


def test_a_student_or_teacher_without_readable_boxes_is_refused() -> None:
    sabl = CASES['SABL RetinaNet'].student
    with pytest.raises(ConfigError, match=r'model: .*SABLRetinaHead, but not its boxes: .*buckets'):
        distilled(sabl, sabl, Path('nowhere.pth'), dict(bbox=dict(type='BoxKDLoss')))
