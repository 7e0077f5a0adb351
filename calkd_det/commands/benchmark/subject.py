"""What is timed: the detectors of a CalKD config with random weights, and a batch of noise."""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields, is_dataclass, replace
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

from calkd_det.commands.random_weights import fill_values
from calkd_det.errors import ConfigError
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
        cfg: A CalKD config from :func:`with_random_teacher`.
        size: Height and width of the images, in pixels.
        batch_size: Number of images.
        device: Where everything is.
    """

    cfg: Config
    size: tuple[int, int]
    batch_size: int
    device: torch.device

    def student(self) -> nn.Module:
        """Build the plain student, in training mode."""
        return self._prepare(plain_model(self.cfg))

    def distilled(self, **teacher_options: Any) -> nn.Module:
        """Build the distilled student, its teacher built, in training mode."""
        model = copy.deepcopy(self.cfg.model)
        model.teacher.update(teacher_options)
        detector = self._prepare(model)
        with torch.no_grad():  # the first loss builds the teacher
            detector(**detector.data_preprocessor(self.batch, True), mode='loss')
        return detector

    def teacher(self) -> nn.Module:
        """Build the teacher's whole detector as mmdet builds it, in evaluation mode, frozen."""
        holder = FrozenTeacher.from_config(self.cfg.model.teacher)
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
        return noise_batch(self.size, self.batch_size)

    def _prepare(self, model: ConfigDict) -> nn.Module:
        torch.manual_seed(0)
        return fill_values(MODELS.build(model)).to(self.device).train()


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


def with_random_teacher(cfg: Config, checkpoint: Path) -> Config:
    """Return a CalKD config whose teacher has its initial weights, and whose file is read.

    Args:
        cfg: The config.
        checkpoint: Where the weights are written, in the usual format.

    Raises:
        TeacherError: The teacher's config cannot be read or built.
    """
    torch.manual_seed(1)
    source = read_source(cfg.model.teacher.config, 'none is read')
    weights = fill_values(build_detector(source)).state_dict()
    torch.save({'meta': {}, 'state_dict': weights}, checkpoint)
    cfg = copy.deepcopy(cfg)
    cfg.model.teacher.update(config=dict(model=source.model), checkpoint=str(checkpoint))
    return cfg


def noise_batch(size: tuple[int, int], batch_size: int) -> dict[str, list]:
    """Make uint8 images of noise, each with eight boxes of class 0 at random places."""
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
        data_sample = DetDataSample(
            metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))
        )
        data_sample.gt_instances = InstanceData(
            bboxes=boxes, labels=torch.zeros(BOXES_PER_IMAGE, dtype=torch.long)
        )
        data_sample.ignored_instances = InstanceData(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
        )
        inputs.append(image)
        data_samples.append(data_sample)
    return dict(inputs=inputs, data_samples=data_samples)


def as_leaves(value: Any) -> Any:
    """Return a value in which every tensor with a graph is a copy that begins a new one.

    Args:
        value: A tensor, a tuple or list, a dataclass such as a piece of knowledge, or anything
            else, which is returned as it is.
    """
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_() if value.requires_grad else value
    if isinstance(value, (tuple, list)):
        return type(value)(map(as_leaves, value))
    if is_dataclass(value):
        return replace(value, **{f.name: as_leaves(getattr(value, f.name)) for f in fields(value)})
    return value
