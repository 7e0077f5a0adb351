"""A data set that small detectors learn in seconds: objects whose class is their colour."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, ClassVar

import helpers
import torch
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.dataset import DefaultSampler, pseudo_collate
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import nn
from torch.utils.data import DataLoader, Dataset

COLOURS = ((40, 40, 220), (40, 200, 40), (220, 60, 40))
SIZE = 64
_runs = itertools.count()


class ColouredShapes(Dataset):
    """Images of 64 x 64 with one to three rectangles."""

    metainfo: ClassVar[dict] = dict(classes=helpers.CLASSES)

    def __init__(self, num_images: int = 160) -> None:
        self.num_images = num_images

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)

        def draw(low: int, high: int) -> int:
            return int(torch.randint(low, high, (), generator=generator))

        image = torch.randint(90, 140, (3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
        boxes, labels = [], []
        for _ in range(draw(1, 4)):
            width, height = draw(18, 30), draw(18, 30)
            x, y, label = draw(0, SIZE - width), draw(0, SIZE - height), draw(0, len(COLOURS))
            image[:, y : y + height, x : x + width] = torch.tensor(
                COLOURS[label], dtype=torch.uint8
            )[:, None, None]
            boxes.append([x, y, x + width, y + height])
            labels.append(label)
        sample = DetDataSample(
            metainfo=dict(img_shape=(SIZE, SIZE), ori_shape=(SIZE, SIZE), scale_factor=(1.0, 1.0))
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor(boxes, dtype=torch.float), labels=torch.tensor(labels)
        )
        sample.ignored_instances = InstanceData(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
        )
        return dict(inputs=image, data_samples=sample)


def train(
    model: ConfigDict,
    work_dir: Path,
    *,
    epochs: int = 1,
    lr: float = 2e-3,
    num_images: int = 160,
    **options: Any,
) -> nn.Module:
    """Train a detector with batches of four; ``options`` are further ones of the Runner."""
    data = ColouredShapes(num_images)
    runner = Runner(
        model=helpers.build(model),
        work_dir=str(work_dir),
        train_dataloader=DataLoader(
            data,
            batch_size=4,
            sampler=DefaultSampler(data, shuffle=True, seed=0),
            collate_fn=pseudo_collate,
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=lr), clip_grad=dict(max_norm=10)),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=10),
            checkpoint=dict(type='CheckpointHook', interval=epochs),
        ),
        randomness=dict(seed=0),
        default_scope='mmdet',
        experiment_name=f'shapes_{next(_runs)}',
        **options,
    )
    runner.train()
    return runner.model
