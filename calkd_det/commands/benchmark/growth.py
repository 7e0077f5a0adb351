"""How the cost of a step grows: one subject for each value of each thing that varies."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from mmengine.config import Config

from calkd_det.commands.benchmark.subject import Subject, write_random_teacher
from calkd_det.errors import ConfigError
from calkd_det.teachers.source import read_source


def growth_points(
    subject: Subject, teachers: Sequence[str], folder: Path
) -> Iterator[tuple[str, str, Subject]]:
    """Yield subjects around one: smaller and larger images, RoIs, classes, batches, teachers.

    Args:
        subject: The one in the middle.
        teachers: Configs of teachers, from small to large.
        folder: For the teachers' random weights.

    Yields:
        What varies, its value for the reader, and the subject.

    Raises:
        ConfigError: The config's head samples no RoIs.
    """
    if 'roi_head' not in subject.cfg.model:
        raise ConfigError(
            f'{subject.cfg.model.type} samples no RoIs: growth is measured on a two-stage detector'
        )
    side = subject.size[0]
    for pixels in (side // 2, side, side * 3 // 2, side * 2):
        yield 'image side', str(pixels), replace(subject, size=(pixels, pixels))
    for rois in (128, 256, 512, 1024):
        yield 'RoIs an image', str(rois), replace(subject, cfg=_with_rois(subject.cfg, rois))
    for classes in (80, 365, 1203):
        cfg = _with_classes(subject.cfg, classes)
        file = folder / f'{classes}-classes.pth'
        write_random_teacher(cfg, file)
        yield 'classes', str(classes), replace(subject, cfg=cfg, teacher_checkpoint=file)
    for images in (1, 2, 4):
        yield 'images', str(images), replace(subject, batch_size=images)
    for number, teacher in enumerate(teachers):
        cfg = copy.deepcopy(subject.cfg)
        cfg.model.teacher.config = teacher
        file = folder / f'teacher-{number}.pth'
        write_random_teacher(cfg, file)
        yield 'teacher', Path(teacher).stem, replace(subject, cfg=cfg, teacher_checkpoint=file)


def _with_rois(cfg: Config, number: int) -> Config:
    cfg = copy.deepcopy(cfg)
    train_cfg = cfg.model.train_cfg
    stages = train_cfg.rcnn if isinstance(train_cfg.rcnn, (list, tuple)) else [train_cfg.rcnn]
    for stage in stages:
        stage.sampler.num = number
    train_cfg.rpn_proposal.max_per_img = max(2 * number, train_cfg.rpn_proposal.max_per_img)
    return cfg


def _with_classes(cfg: Config, number: int) -> Config:
    cfg = copy.deepcopy(cfg)
    teacher = read_source(cfg.model.teacher.config, 'none is read').model
    for model in (cfg.model, teacher):
        heads = model.roi_head.bbox_head
        for head in heads if isinstance(heads, (list, tuple)) else [heads]:
            head.num_classes = number
    cfg.model.teacher.config = dict(model=teacher.to_dict())
    return cfg
