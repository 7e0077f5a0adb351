"""Whole runs of mmengine's Runner on a handful of random images."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path
from typing import Any, ClassVar

import helpers
import torch
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.dataset import DefaultSampler, pseudo_collate
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Dataset

import calkd_det  # noqa: F401

IMAGES = 4
_runs = itertools.count()


class RandomImages(Dataset):
    metainfo: ClassVar[dict] = dict(classes=helpers.CLASSES)

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> dict[str, Any]:
        data = helpers.batch(sizes=[(64, 96)], seed=index)
        return {key: values[0] for key, values in data.items()}


class SeedEveryEpoch(Hook):
    """What mmengine does not restore, and samplers of anchors and RoIs draw from."""

    def before_train_epoch(self, runner: Runner) -> None:
        torch.manual_seed(runner.epoch)


class KillAt(Hook):
    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if runner.iter == self.iteration:
            os.kill(os.getpid(), signal.SIGKILL)


def run(
    model: ConfigDict,
    work_dir: Path,
    *,
    epochs: int = 2,
    hooks: list[Hook] | None = None,
    resume: bool = False,
    optim_wrapper: dict | None = None,
    train_dataloader: dict | None = None,
    **options: Any,
) -> Runner:
    """Trains with batches of two random images, two iterations an epoch, or those of a loader."""
    data = RandomImages()
    runner = Runner(
        model=helpers.build(model),
        work_dir=str(work_dir),
        train_dataloader=train_dataloader
        or DataLoader(
            data,
            batch_size=2,
            sampler=DefaultSampler(data, shuffle=True, seed=0),
            collate_fn=pseudo_collate,
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper={
            'optimizer': dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4),
            **(optim_wrapper or {}),
        },
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        custom_hooks=[SeedEveryEpoch(), *(hooks or [])],
        resume=resume,
        randomness=dict(seed=0),
        default_scope='mmdet',
        # mmengine keeps loggers and message hubs by name and second.
        experiment_name=f'run_{next(_runs)}',
        **options,
    )
    runner.train()
    return runner


def run_until_killed(model: ConfigDict, work_dir: Path, iteration: int) -> None:
    """For a process of its own."""
    register_all_modules(init_default_scope=True)
    torch.set_num_threads(1)
    run(model, work_dir, hooks=[KillAt(iteration)])


def log_of(work_dir: Path) -> str:
    return '\n'.join(path.read_text() for path in sorted(work_dir.glob('*/*.log')))
