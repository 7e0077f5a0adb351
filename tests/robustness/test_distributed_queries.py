"""Two ranks on the CPU with a small DINO: matches are counted over both, and none waits."""

from __future__ import annotations

import copy
from datetime import timedelta
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from helpers import CLASSES
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from torch import Tensor, distributed, nn

import calkd_det  # noqa: F401

STEPS = 2
# Objects of each of two images, by rank.
OBJECTS = {'other numbers': ((4, 3), (1, 0)), 'none on one': ((3, 2), (0, 0))}

pytestmark = pytest.mark.slow


def batch(counts: tuple[int, ...], seed: int) -> dict[str, list]:
    """Images of one size with so many objects each."""
    parts = [
        helpers.batch(sizes=[(64, 96)], num_boxes=count, seed=10 * seed + place)
        for place, count in enumerate(counts)
    ]
    return {key: [part[key][0] for part in parts] for key in parts[0]}


def joined(name: str) -> dict[str, list]:
    """The batches of both ranks in one."""
    parts = [batch(counts, seed=rank) for rank, counts in enumerate(OBJECTS[name])]
    return {key: parts[0][key] + parts[1][key] for key in parts[0]}


def build(cfg: ConfigDict) -> nn.Module:
    detector = helpers.build(cfg)
    detector.dataset_meta = dict(classes=CLASSES)
    detector.init_weights()
    return detector.train()


def train(model: nn.Module, detector: nn.Module, data: dict[str, list]) -> list[dict[str, float]]:
    wrapper = build_optim_wrapper(
        detector, dict(optimizer=dict(type='SGD', lr=0.01), clip_grad=dict(max_norm=0.1))
    )
    return [
        {key: float(value) for key, value in logs.items()}
        for logs in (model.train_step(copy.deepcopy(data), wrapper) for _ in range(STEPS))
    ]


def work(rank: int, cfg: ConfigDict, folder: Path) -> None:
    torch.set_num_threads(1)
    register_all_modules(init_default_scope=True)
    distributed.init_process_group(
        'gloo',
        init_method=f'file://{folder}/rendezvous',
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    results = {}
    for name, counts in OBJECTS.items():
        detector = build(cfg)
        model = MMDistributedDataParallel(detector, broadcast_buffers=False)
        logs = train(model, detector, batch(counts[rank], seed=rank))
        results[name] = dict(logs=logs, state=detector.state_dict())
    torch.save(results, folder / f'{rank}.pt')


@pytest.fixture(scope='module')
def cfg(tmp_path_factory: pytest.TempPathFactory) -> ConfigDict:
    """A DINO taught classes and boxes, by matching and by denoising queries."""
    # Not by the ranks: they would read configs of the zoo for seconds.
    import query_cases
    from pairs import save

    student = query_cases.detector_config('DINO')
    student.backbone.norm_eval = True
    teacher = query_cases.detector_config('DINO', width=16, queries=16)
    checkpoint = tmp_path_factory.mktemp('teacher') / 'teacher.pth'
    save(helpers.build(teacher, seed=1), checkpoint, CLASSES)
    student.type = 'CalKDDINO'
    student.teacher = dict(
        config=dict(model=teacher.to_dict()), checkpoint=str(checkpoint), denoising=True
    )
    student.distillation = dict(cls=dict(type='BinaryKDLoss'), bbox=dict(type='BoxKDLoss'))
    return student


@pytest.fixture(scope='module')
def ranks(cfg: ConfigDict, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp('ranks')
    helpers.run_ranks(work, cfg, folder)
    return [torch.load(folder / f'{rank}.pt') for rank in range(2)]


@pytest.mark.parametrize('name', OBJECTS)
def test_the_mean_over_ranks_is_the_single_process_on_both_batches(
    name: str, cfg: ConfigDict, ranks: list[dict[str, Any]]
) -> None:
    """A rank that divided by its own number of matches would have another mean.

    The noise of denoising queries is drawn by each rank, so their losses are not compared.
    """
    detector = build(cfg)
    logs = train(detector, detector, joined(name))[0]
    firsts = [rank[name]['logs'][0] for rank in ranks]
    for key in ('loss_cls', 'loss_bbox', 'loss_kd_cls', 'loss_kd_bbox'):
        assert logs[key] > 0
        mean = (firsts[0][key] + firsts[1][key]) / 2
        assert mean == pytest.approx(logs[key], rel=1e-3), key


@pytest.mark.parametrize('name', OBJECTS)
def test_ranks_keep_step(name: str, ranks: list[dict[str, Any]]) -> None:
    first, second = (rank[name] for rank in ranks)
    states: list[dict[str, Tensor]] = [first['state'], second['state']]
    for key, value in states[0].items():
        assert value.isfinite().all(), key
        assert torch.equal(value, states[1][key]), key
    for rank, counts in zip((first, second), OBJECTS[name]):
        assert len(rank['logs']) == STEPS
        for logs in rank['logs']:
            assert logs['loss_kd_cls'] > 0
            for key in ('loss_kd_bbox', 'dn.loss_kd_cls', 'dn.loss_kd_bbox'):
                assert (logs[key] > 0) == any(counts), key
