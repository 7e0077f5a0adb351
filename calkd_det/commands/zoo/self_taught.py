"""One training step of a detector that is taught by itself, by all that it can learn."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData, PixelData
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from calkd_det.commands.random_weights import fill_values
from calkd_det.commands.zoo.configs import describe_error
from calkd_det.commands.zoo.student import build_without_weights, student_config
from calkd_det.knowledge import Activation, Kind
from calkd_det.taps import find_tap

# Deformable convolutions do not run on maps of a few cells, and other layers are slow on many.
SIDES = (128, 384)
NUM_IMAGES = 2
NUM_ROIS = 64
# A loss between two equal networks is rounding error.
TOLERANCE = 1e-4
_CLASS_LOSSES: dict[Activation, str] = {'softmax': 'KDLoss', 'sigmoid': 'BinaryKDLoss'}
_LOSSES: dict[Kind, str] = {'box': 'BoxKDLoss', 'features': 'PKDLoss'}


def teach_itself(model: ConfigDict, kinds: Sequence[Kind]) -> str:
    """Run a step of a detector with random weights whose teacher has the same weights.

    Args:
        model: The config of the plain detector.
        kinds: What it learns.

    Returns:
        ``'yes'`` where each loss of distillation is zero and all gradients are finite; else what
        was found, or why the plain detector does not train on a small batch here.
    """
    outcome = ''
    for side in SIDES:
        with TemporaryDirectory() as folder:
            student = _build(model, kinds, Path(folder) / 'teacher.pth')
            batch = student.data_preprocessor(_random_batch(side), True)
            try:
                return _step(student, batch)
            # The detector may raise anything; whose fault it is, its plain step tells.
            except Exception as error:
                outcome = f'no: {describe_error(error)}'
            student.distillation = {}
            try:
                student.loss(**batch_arguments(batch))
            except Exception as error:
                outcome = f'not tried: {describe_error(error)}'
            else:
                return outcome
    return outcome


def batch_arguments(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a preprocessed batch as the arguments of a detector's ``loss``."""
    return dict(batch_inputs=batch['inputs'], batch_data_samples=batch['data_samples'])


def _build(model: ConfigDict, kinds: Sequence[Kind], checkpoint: Path) -> nn.Module:
    """Build a student in training mode, and write its weights as those of its teacher."""
    model = _with_few_rois(model)
    cfg = student_config(model)
    cfg.teacher = dict(
        config=dict(model=model.to_dict()),
        checkpoint=str(checkpoint),
        calibrator=dict(type='TemperatureScaling', temperature=1.0),
    )
    cfg.distillation = {kind: dict(type=_loss_name(model, kind)) for kind in kinds}
    torch.manual_seed(0)
    student = fill_values(MODELS.build(cfg)).train()
    for module in student.modules():
        if isinstance(module, _BatchNorm) and module.running_var is not None:
            # So that it scales by 1 and folding it rounds nothing: detectors of two stages choose
            # queries by scores that are nearly equal here.
            module.running_var.fill_(1 - module.eps)
    torch.save(dict(meta={}, state_dict=student.state_dict()), checkpoint)
    # As the teacher, whose mode is that of evaluation.
    for module in student.modules():
        # An attention of torch has a dropout without a module.
        has_mode = isinstance(module, (_BatchNorm, nn.MultiheadAttention))
        if has_mode or 'drop' in type(module).__name__.lower():
            module.eval()
    student.data_preprocessor.batch_augments = None
    return student


def _loss_name(model: ConfigDict, kind: Kind) -> str:
    if kind != 'class':
        return _LOSSES[kind]
    detector = build_without_weights(model)
    return _CLASS_LOSSES[find_tap(detector, 'model').activation(detector)]


def _with_few_rois(model: ConfigDict) -> ConfigDict:
    """Return a config whose two-stage detector samples few RoIs."""
    model = copy.deepcopy(model)
    stages = (model.get('train_cfg') or {}).get('rcnn') or []
    for stage in stages if isinstance(stages, (list, tuple)) else [stages]:
        if 'num' in stage.get('sampler', {}):
            stage.sampler.num = NUM_ROIS
    return model


def _random_batch(side: int) -> dict[str, list]:
    """Return noise with objects, masks, a segmentation and proposals, as a data loader does."""
    generator = torch.Generator().manual_seed(0)
    inputs, data_samples = [], []
    for _ in range(NUM_IMAGES):
        image = torch.randint(0, 256, (3, side, side), generator=generator, dtype=torch.uint8)
        corner = torch.rand(4, 2, generator=generator) * side / 2
        boxes = torch.cat([corner, corner + side / 4], dim=1)
        masks = np.zeros((len(boxes), side, side), np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()):
            mask[y1:y2, x1:x2] = 1
        shape = (side, side)
        sample = DetDataSample(
            metainfo=dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0), flip=False)
        )
        labels = torch.zeros(len(boxes), dtype=torch.long)
        sample.gt_instances = InstanceData(
            bboxes=boxes, labels=labels, masks=BitmapMasks(masks, side, side)
        )
        sample.ignored_instances = InstanceData(bboxes=boxes[:0], labels=labels[:0])
        sample.proposals = InstanceData(bboxes=boxes + 2, scores=torch.ones(len(boxes)))
        sample.gt_sem_seg = PixelData(sem_seg=torch.zeros(1, side, side, dtype=torch.long))
        inputs.append(image)
        data_samples.append(sample)
    return dict(inputs=inputs, data_samples=data_samples)


def _step(student: nn.Module, batch: dict[str, Any]) -> str:
    losses = student.loss(**batch_arguments(copy.copy(batch)))
    total, logs = student.parse_losses(losses)
    total.backward()
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    found = {name: value.item() for name, value in logs.items() if 'loss_kd' in name}
    large = {name: value for name, value in found.items() if not value <= TOLERANCE}
    if large:
        return f'no: {", ".join(f"{name} is {value:.2g}" for name, value in large.items())}'
    if not all(gradient.isfinite().all() for gradient in gradients):
        return 'no: a gradient is not finite'
    return 'yes' if found else 'no: no loss of distillation'
