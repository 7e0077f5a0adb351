"""Run the checks in their order, and skip those that need one that failed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.runner import set_random_seed
from torch import nn
from torch.utils.data import DataLoader

from calkd_det.commands.doctor.dry_step import check_step
from calkd_det.commands.doctor.evidence import check_evidence, judge_samples
from calkd_det.commands.doctor.finding import Finding, attempt, findings_of, logged_warnings
from calkd_det.commands.doctor.quality import (
    check_calibration,
    check_map,
    collect_validation_samples,
    read_validation_images,
)
from calkd_det.commands.doctor.student import (
    build_student,
    build_train_loader,
    check_distillation,
    find_distilled,
    initialise,
    student_classes,
)
from calkd_det.commands.doctor.teacher import check_teacher
from calkd_det.commands.doctor.versions import check_device, check_versions
from calkd_det.stack import installed_versions
from calkd_det.taps import find_tap
from calkd_det.teachers.whole_teacher import build_whole_teacher


def examine(cfg: Config, *, device: torch.device, num_images: int = 32) -> Iterator[Finding]:
    """Check a config as a training would use it, without writing files.

    Args:
        cfg: A whole config. It is not changed.
        device: Where the networks run.
        num_images: Validation images for the teacher's mAP and calibration, > 0.

    Returns:
        Findings, each as soon as it is known. A failed check is a finding with mark ``error``.
    """
    # The log would hide the findings. Warnings that matter are among the findings.
    MMLogger.get_instance('doctor', log_level='ERROR')
    set_random_seed(0)
    register_all_modules(init_default_scope=True)
    yield from findings_of('versions', check_versions, installed_versions())
    yield from findings_of('device', check_device, device)
    model, failed = attempt('model', build_student, cfg)
    yield from failed
    loader, failed = attempt('training data', build_train_loader, cfg)
    yield from failed
    if loader is not None:
        yield Finding('ok', 'training data', f'{len(loader.dataset)} images')
    if model is None:
        return
    yield from findings_of('distillation', check_distillation, cfg, model)
    yield from _examine_model(cfg, model, loader, device, num_images)


def _examine_model(
    cfg: Config,
    model: nn.Module,
    loader: DataLoader | None,
    device: torch.device,
    num_images: int,
) -> Iterator[Finding]:
    _, failed = attempt('initial weights', initialise, model)
    yield from failed
    student = find_distilled(model)
    if student is not None and student.distilling:
        with logged_warnings('classes') as warnings:
            classes, unreadable = attempt('classes', student_classes, cfg, loader)
        yield from (*unreadable, *warnings)
        with logged_warnings('teacher') as warnings:
            _, failed = attempt('teacher', student.teacher.build, student, classes)
        yield from (*failed, *warnings)
        if failed:
            student.distillation = {}  # the student alone can still be looked at
        else:
            yield from _examine_teacher(cfg, student, classes, device, num_images)
    if loader is not None and student in (None, model):
        model = revert_sync_batchnorm(model)
        yield from findings_of('training step', check_step, model, loader, device)
    elif loader is not None:
        text = f'cannot tell: a step of a {type(model).__name__} is not tried'
        yield Finding('warning', 'training step', text)


def _examine_teacher(
    cfg: Config,
    student: nn.Module,
    classes: tuple[str, ...] | None,
    device: torch.device,
    num_images: int,
) -> Iterator[Finding]:
    whole, failed = attempt('teacher', build_whole_teacher, student.teacher)
    yield from failed
    if whole is None:
        return
    yield from findings_of('teacher', check_teacher, student, classes, whole)
    num_classes = find_tap(student, 'model').num_classes(student)
    data, failed = attempt(
        'validation data', read_validation_images, cfg, num_images, num_classes, classes
    )
    yield from failed
    if data is None:
        return
    network = student.teacher.network
    columns = None if network.class_map is None else network.class_map.columns
    detector, failed = attempt('device', whole.detector.to, device)
    yield from failed
    if detector is None:
        return
    store, failed = attempt('evidence', collect_validation_samples, detector, data, columns)
    yield from failed
    judgement = None
    if store is not None:
        judgement, failed = attempt('evidence', judge_samples, store, network)
        yield from failed
    if judgement is not None:
        yield from check_evidence(judgement, classes, len(data.dataset))
    sees = judgement is not None and judgement.sees
    yield from findings_of('teacher mAP', check_map, detector, data, columns, sees)
    if store is not None:
        yield from findings_of('calibration', check_calibration, store, network.calibrator, data)
