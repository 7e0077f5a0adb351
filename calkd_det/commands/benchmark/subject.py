"""What is timed: the detectors of a CalKD config with random weights, and a batch of noise."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.structures import InstanceData
from torch import Tensor, nn

from calkd_det.errors import ConfigError
from calkd_det.taps import HeadSamples, find_tap
from calkd_det.teachers import FrozenTeacher
from calkd_det.teachers.frozen_teacher import build_detector
from calkd_det.teachers.source import read_source
from calkd_det.teachers.whole_teacher import build_whole_teacher

PREFIX = 'CalKD'
BOXES_PER_IMAGE = 8


@dataclass
class Subject:
    """A student, its teacher and a batch; each is built when it is first asked for.

    Args:
        cfg: A CalKD config.
        teacher_checkpoint: A file that fills the teacher.
        size: Height and width of the images, in pixels.
        batch_size: Number of images.
        device: Where everything is.
    """

    cfg: Config
    teacher_checkpoint: Path
    size: tuple[int, int]
    batch_size: int
    device: torch.device

    def student(self) -> nn.Module:
        """Build the plain student, in training mode."""
        return self._prepare(plain_model(self.cfg))

    def distilled(self, **teacher_options: Any) -> nn.Module:
        """Build the distilled student, its teacher built, in training mode."""
        model = copy.deepcopy(self.cfg.model)
        model.teacher.update(self._teacher_config(**teacher_options))
        return self._prepare(model)

    def teacher(self) -> nn.Module:
        """Build the teacher's whole detector as mmdet builds it, in evaluation mode, frozen."""
        holder = FrozenTeacher.from_config(self._teacher_config())
        return build_whole_teacher(holder).detector.to(self.device).requires_grad_(False)

    def optimizer(self, detector: nn.Module) -> OptimWrapper:
        """Build the config's optimizer with a learning rate of zero: the weights stay the same."""
        cfg = copy.deepcopy(self.cfg.optim_wrapper)
        cfg.optimizer.lr = 0.0
        cfg.type = 'OptimWrapper'
        return build_optim_wrapper(detector, cfg)

    @cached_property
    def batch(self) -> dict[str, list]:
        """Make images of noise with random boxes, as a data loader gives them."""
        student = self.student()
        num_classes = find_tap(student, 'model').num_classes(student)
        return noise_batch(self.size, self.batch_size, num_classes)

    def _teacher_config(self, **options: Any) -> dict[str, Any]:
        checkpoint = str(self.teacher_checkpoint)
        return {**self.cfg.model.teacher, 'checkpoint': checkpoint, **options}

    def _prepare(self, model: ConfigDict) -> nn.Module:
        torch.manual_seed(0)
        detector = MODELS.build(model).to(self.device)
        if hasattr(detector, 'teacher'):
            detector.teacher.build(detector)
        return detector.train()


def check_config(cfg: Config) -> None:
    """Check that a config trains a distilled detector.

    Raises:
        ConfigError: It does not.
    """
    model = cfg.get('model', {})
    if not str(model.get('type')).startswith(PREFIX) or not model.get('distillation'):
        raise ConfigError(
            f'model.type is {model.get("type")!r}: the benchmark needs a config that distils, with '
            "model.type='CalKD...', model.teacher and model.distillation"
        )
    if 'optim_wrapper' not in cfg:
        raise ConfigError('the config has no optim_wrapper: the benchmark times whole steps')


def plain_model(cfg: Config) -> ConfigDict:
    """Return the model of a CalKD config without its distillation."""
    model = copy.deepcopy(cfg.model)
    model.type = model.type.removeprefix(PREFIX)
    del model['teacher'], model['distillation']
    return model


def write_random_teacher(cfg: Config, path: Path) -> None:
    """Write a checkpoint, of the usual format, with the teacher's initial weights."""
    torch.manual_seed(1)
    detector = build_detector(read_source(cfg.model.teacher.config, 'none is read'))
    torch.save({'meta': {}, 'state_dict': detector.state_dict()}, path)


def noise_batch(size: tuple[int, int], batch_size: int, num_classes: int) -> dict[str, list]:
    """Make uint8 images of noise, each with eight boxes of random place, size and class."""
    generator = torch.Generator().manual_seed(0)
    height, width = size
    inputs: list[Tensor] = []
    data_samples: list[DetDataSample] = []
    for _ in range(batch_size):
        image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        corner, extent = torch.rand(2, BOXES_PER_IMAGE, 2, generator=generator)
        extent = 0.1 + 0.4 * extent
        boxes = torch.cat([corner / 2, corner / 2 + extent], dim=1)
        boxes *= torch.tensor([width, height, width, height])
        labels = torch.randint(0, num_classes, (BOXES_PER_IMAGE,), generator=generator)
        data_sample = DetDataSample(
            metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))
        )
        data_sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
        data_sample.ignored_instances = InstanceData(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
        )
        inputs.append(image)
        data_samples.append(data_sample)
    return dict(inputs=inputs, data_samples=data_samples)


def detached(samples: list[HeadSamples]) -> list[HeadSamples]:
    """Return the same samples without the student's graph, their logits leaves of a new one."""
    return [
        replace(group, logits=group.logits.detach().clone().requires_grad_()) for group in samples
    ]
