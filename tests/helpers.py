"""Small detectors and batches that the tests share."""

from __future__ import annotations

import copy
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from multiprocessing.context import BaseContext
from pathlib import Path
from types import ModuleType
from typing import Any

import mmdet
import numpy as np
import pytest
import torch
from mmdet.models.backbones.resnet import BasicBlock, ResNet
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, multiprocessing, nn

from calkd_det import safe_loading

CLASSES = ('cat', 'dog', 'bird')
# A ResNet-18 of one block a stage, which has every kind of its layers.
SMALL_RESNET = 10
ResNet.arch_settings = {**ResNet.arch_settings, SMALL_RESNET: (BasicBlock, (1, 1, 1, 1))}


# It lacks some of what the current torch has.
TORCH_2_1 = torch.__version__.startswith('2.1.')
# The maintained forks' mmdet does not check the version of mmcv.
ONEDL = not hasattr(mmdet, 'mmcv_maximum_version')


def load_tool(name: str, folder: str = 'tools') -> ModuleType:
    """A script of ``tools/``, or of another folder of the repository, as a module."""
    path = Path(__file__).resolve().parents[1] / folder / f'{name}.py'
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for the types of their fields
    spec.loader.exec_module(module)
    return module


def detector_config(
    type: str = 'FasterRCNN',
    *,
    num_classes: int = len(CLASSES),
    base_channels: int = 8,
    depth: int = 18,
    **extra: Any,
) -> ConfigDict:
    """mmdet's Faster R-CNN with every size turned down; ``extra`` goes into the model's dict."""
    cfg = get_config('mmdet::_base_/models/faster-rcnn_r50_fpn.py')
    model = cfg.model
    model.type = type
    expansion = 1 if depth < 50 else 4
    model.backbone.merge_from = None
    del model.backbone['merge_from']
    model.backbone.update(depth=depth, base_channels=base_channels, init_cfg=None, frozen_stages=-1)
    widths = [base_channels * 2**i * expansion for i in range(4)]
    model.neck.update(in_channels=widths, out_channels=16)
    model.rpn_head.update(in_channels=16, feat_channels=16)
    model.roi_head.bbox_roi_extractor.out_channels = 16
    model.roi_head.bbox_roi_extractor.roi_layer.sampling_ratio = 2
    model.roi_head.bbox_head.update(in_channels=16, fc_out_channels=32, num_classes=num_classes)
    model.train_cfg.rpn_proposal.update(nms_pre=100, max_per_img=50)
    model.train_cfg.rcnn.sampler.num = 32
    model.update(extra)
    return model


def build(cfg: ConfigDict, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    detector = MODELS.build(copy.deepcopy(cfg))
    if hasattr(detector, 'level_embed'):  # without values before init_weights
        nn.init.normal_(detector.level_embed)
    return detector


def randomise_batchnorm(detector: nn.Module, seed: int = 7) -> None:
    """Gives BatchNorm statistics and weights that folding has to get right."""
    generator = torch.Generator().manual_seed(seed)
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)


@torch.no_grad()
def sharpen_classifier(detector: nn.Module, seed: int = 3) -> None:
    """Gives class logits a spread over the RoIs of a batch: mmdet's initial ones are alike."""
    fc_cls = detector.roi_head.bbox_head.fc_cls
    generator = torch.Generator().manual_seed(seed)
    fc_cls.weight.copy_(torch.randn(fc_cls.weight.shape, generator=generator))
    seen: list[Tensor] = []
    handle = fc_cls.register_forward_hook(lambda module, args, output: seen.append(output))
    training = detector.training
    detector.eval().test_step(batch())
    detector.train(training)
    handle.remove()
    scale = 3 / seen[0].std(dim=0).mean()
    fc_cls.weight.mul_(scale)
    fc_cls.bias.copy_(-scale * (seen[0] - fc_cls.bias).mean(dim=0))


def save_teacher(
    path: Path,
    cfg: ConfigDict,
    *,
    classes: Sequence[str] | None = CLASSES,
    seed: int = 1,
) -> nn.Module:
    """Builds a teacher, writes a published-style checkpoint of it and returns it in eval mode."""
    teacher = build(cfg, seed)
    randomise_batchnorm(teacher)
    sharpen_classifier(teacher)
    meta = {} if classes is None else {'dataset_meta': {'classes': tuple(classes)}}
    torch.save({'meta': meta, 'state_dict': teacher.state_dict()}, path)
    return teacher.eval()


def batch(
    sizes: Sequence[tuple[int, int]] = ((64, 96), (96, 80)),
    num_boxes: int = 3,
    num_classes: int = len(CLASSES),
    seed: int = 0,
    masks: bool = False,
    segmentation: int = 0,
) -> dict[str, list]:
    """A batch as a data loader gives it: uint8 images and annotated data samples.

    ``masks`` are the boxes' own; ``segmentation`` is the number of classes of a random map.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs, data_samples = [], []
    for height, width in sizes:
        inputs.append(
            torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        )
        corner = torch.rand(num_boxes, 2, generator=generator) * torch.tensor(
            [width / 2, height / 2]
        )
        size = torch.rand(num_boxes, 2, generator=generator) * 24 + 12
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(height, width), ori_shape=(height, width), scale_factor=(1.0, 1.0)
            )
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.cat([corner, corner + size], dim=1),
            labels=torch.randint(0, num_classes, (num_boxes,), generator=generator),
        )
        sample.ignored_instances = InstanceData(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
        )
        if masks:
            filled = np.zeros((num_boxes, height, width), np.uint8)
            for mask, (x1, y1, x2, y2) in zip(filled, sample.gt_instances.bboxes.int().tolist()):
                mask[y1:y2, x1:x2] = 1
            sample.gt_instances.masks = BitmapMasks(filled, height, width)
        if segmentation:
            labels = torch.randint(0, segmentation, (1, height, width), generator=generator)
            sample.gt_sem_seg = PixelData(sem_seg=labels)
        data_samples.append(sample)
    return dict(inputs=inputs, data_samples=data_samples)


def loss(detector: nn.Module, data: dict[str, list]) -> dict[str, Tensor]:
    """The losses of one training step, without the update."""
    data = detector.data_preprocessor(copy.deepcopy(data), True)
    return detector(**data, mode='loss')


def distilled_config(teacher_model: ConfigDict, checkpoint: Path, **changes: Any) -> ConfigDict:
    """The small student with a teacher; ``changes`` override ``teacher`` or ``distillation``."""
    extra = dict(
        teacher=dict(config=dict(model=teacher_model.to_dict()), checkpoint=str(checkpoint)),
        distillation=dict(type='KDLoss', tau=1.0, loss_weight=1.0),
    )
    for key, value in changes.items():
        extra[key] = {**extra[key], **value} if isinstance(value, dict) else value
    return detector_config('CalKDFasterRCNN', **extra)


def cpu_autocast(dtype: torch.dtype) -> torch.autocast:
    """Return autocast on the CPU; skip the test where torch has none of that dtype there."""
    if TORCH_2_1 and dtype == torch.float16:
        pytest.skip(f'torch {torch.__version__} has no {dtype} autocast on the CPU')
    return torch.autocast('cpu', dtype)


def switch_off_fast_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let attention in eval mode compute as in training, without torch's fast path."""
    if TORCH_2_1:  # it has no switch, and asks this before it takes that path
        monkeypatch.setattr(torch.overrides, 'has_torch_function', lambda tensors: True)
    else:
        monkeypatch.setattr(torch.backends.mha, 'get_fastpath_enabled', lambda: False)


def process_context() -> BaseContext:
    """For processes that are forked from one which has imported the libraries and done no more.

    Where there is a GPU they import the libraries themselves: mmcv asks for the GPU at its import,
    and a process that is forked after that cannot use it.
    """
    if torch.cuda.is_available():
        return multiprocessing.get_context('spawn')
    # torch's optimizers import its compiler.
    modules = ['mmdet.models', 'mmdet.datasets', 'calkd_det', 'torch._dynamo']
    multiprocessing.set_forkserver_preload(modules)
    return multiprocessing.get_context('forkserver')


def run_ranks(work: Callable[..., None], *args: Any) -> None:
    """Call ``work(rank, *args)`` in two processes."""
    method = process_context().get_start_method()
    multiprocessing.start_processes(_run_rank, (work, args), nprocs=2, start_method=method)


def _run_rank(rank: int, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    work(rank, *args)
    sys.stdout.flush()
    sys.stderr.flush()
    # The process group is left to the system: whoever frees it with Python's lock held waits for
    # gloo's thread, which may wait for that lock.
    os._exit(0)


def read_as_newer_torch(monkeypatch: pytest.MonkeyPatch, newer: bool) -> None:
    """Read checkpoints as with torch 2.6 or later, or as below; skip what this torch cannot do."""
    if newer and not safe_loading.torch_takes_named_globals():
        pytest.skip(f'torch {torch.__version__} takes no names of globals')
    monkeypatch.setattr(safe_loading, 'torch_takes_named_globals', lambda: newer)
