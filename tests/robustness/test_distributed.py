"""Two ranks on the CPU: the single process's run, and no rank waits for another one's RoIs."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from mmdet.models.task_modules import RandomSampler
from mmdet.registry import TASK_UTILS
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from torch import Tensor, distributed, nn

import calkd_det  # noqa: F401

Teacher = tuple[nn.Module, Path]
STEPS = 3
IMAGES = [dict(sizes=[(64, 96)], seed=seed) for seed in range(4)]

pytestmark = pytest.mark.slow


@TASK_UTILS.register_module()
class FirstSampler(RandomSampler):
    """Draws no random number, so that a sample does not hang on its place in the batch."""

    def random_choice(self, gallery: Tensor, num: int) -> Tensor:
        return gallery[:num]


def same_samples(cfg: ConfigDict) -> ConfigDict:
    """As many samples of every image, so that the mean over ranks is that over the batch."""
    for part, num in (('rpn', 32), ('rcnn', 16)):
        cfg.train_cfg[part].sampler.update(type='FirstSampler', num=num)
    return cfg


def join(parts: list[dict[str, list]]) -> dict[str, list]:
    return {key: [value for part in parts for value in part[key]] for key in parts[0]}


def train(model: nn.Module, detector: nn.Module, data: dict[str, list]) -> list[dict[str, float]]:
    """Train steps through the wrapper that a Runner would use."""
    wrapper = build_optim_wrapper(
        detector,
        dict(optimizer=dict(type='SGD', lr=0.02, momentum=0.9), clip_grad=dict(max_norm=9)),
    )
    return [
        {key: value.item() for key, value in logs.items()}
        for logs in (model.train_step(copy.deepcopy(data), wrapper) for _ in range(STEPS))
    ]


def parallel(detector: nn.Module) -> MMDistributedDataParallel:
    # As mmengine's Runner wraps a model; find_unused_parameters stays off.
    return MMDistributedDataParallel(detector, broadcast_buffers=False)


def build(cfg: ConfigDict, rank: int = 0) -> nn.Module:
    detector = helpers.build(cfg, seed=rank)
    detector.init_weights()
    return detector.train()


def weights(detector: nn.Module) -> dict[str, Tensor]:
    """The state dict, and the learnt parts of losses that it does not hold."""
    learnt = {name: value.detach() for name, value in detector.named_parameters()}
    return {**detector.state_dict(), **learnt}


def same_as_single(cfg: ConfigDict, rank: int) -> dict[str, Any]:
    detector = build(cfg, rank)
    data = join([helpers.batch(**image) for image in IMAGES[2 * rank : 2 * rank + 2]])
    logs = train(parallel(detector), detector, data)
    return dict(logs=logs, state=weights(detector))


def own_teacher(cfg: ConfigDict, rank: int) -> dict[str, Any]:
    detector = build(cfg)
    weight = next(detector.teacher.network.parameters())
    weight.add_(rank)
    before = weight.clone()
    model = parallel(detector)
    train(model, detector, helpers.batch())
    reduced = model._get_ddp_logging_data()['total_parameter_size_bytes']
    return dict(before=before, after=weight, reduced=reduced)


def odd_rank(cfg: ConfigDict, rank: int, *, no_rois: bool) -> dict[str, Any]:
    """Rank 1 gets images without objects, and no RoI at all if asked."""
    detector = build(cfg)
    if rank == 1 and no_rois:
        detector.roi_head.bbox_sampler.num = 0
    data = helpers.batch(num_boxes=3 if rank == 0 else 0)
    logs = train(parallel(detector), detector, data)
    return dict(logs=logs, state=weights(detector))


def teacher_from(cfg: ConfigDict, rank: int) -> dict[str, Any]:
    return dict(teacher=build(cfg).teacher.network.state_dict())


def work(rank: int, jobs: dict[str, tuple[Callable, ConfigDict]], folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(TORCH_HOME=str(folder / 'cache'), no_proxy='127.0.0.1')
    register_all_modules(init_default_scope=True)
    distributed.init_process_group(
        'gloo',
        init_method=f'file://{folder}/rendezvous',
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=30),
    )
    results = {name: job(cfg, rank) for name, (job, cfg) in jobs.items()}
    torch.save(results, folder / f'{rank}.pt')


@pytest.fixture(scope='module')
def server(teacher: Teacher) -> Iterator[tuple[str, list[str]]]:
    """Serves the teacher's checkpoint, and notes what is asked for."""
    seen: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, form: str, *args: Any) -> None:
            seen.append(args[0])

    handler = partial(Handler, directory=str(teacher[1].parent))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{http.server_port}/{teacher[1].name}', seen
        http.shutdown()


@pytest.fixture(scope='module')
def distilled(teacher_config: ConfigDict, teacher: Teacher) -> ConfigDict:
    return same_samples(helpers.distilled_config(teacher_config, teacher[1]))


@pytest.fixture(scope='module')
def learnt(distilled: ConfigDict) -> ConfigDict:
    widths = dict(student_channels=16, teacher_channels=16)
    cfg = copy.deepcopy(distilled)
    # Small, because rounding changes the order of proposals after large steps.
    fgd = dict(type='FGDLoss', context_weight=5e-4, loss_weight=0.02, **widths)
    cfg.distillation = dict(cls=dict(type='KDLoss'), fgd=fgd)
    return cfg


@pytest.fixture(scope='module')
def masked(learnt: ConfigDict) -> ConfigDict:
    """With masks, which the ranks draw each for itself."""
    cfg = copy.deepcopy(learnt)
    cfg.distillation.mgd = dict(cfg.distillation.fgd, type='MGDLoss', loss_weight=1e-6)
    del cfg.distillation.mgd['context_weight']
    return cfg


@pytest.fixture(scope='module')
def plain() -> ConfigDict:
    return same_samples(helpers.detector_config())


@pytest.fixture(scope='module')
def ranks(
    plain: ConfigDict,
    distilled: ConfigDict,
    learnt: ConfigDict,
    masked: ConfigDict,
    teacher_config: ConfigDict,
    server: tuple[str, list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> list[dict[str, dict]]:
    """What two processes come to, one after the other in each of the jobs."""
    folder = tmp_path_factory.mktemp('ranks')
    jobs = dict(
        plain=(same_as_single, plain),
        distilled=(same_as_single, distilled),
        learnt=(same_as_single, learnt),
        own_teacher=(own_teacher, distilled),
        plain_no_foreground=(partial(odd_rank, no_rois=False), plain),
        no_foreground=(partial(odd_rank, no_rois=False), distilled),
        no_rois=(partial(odd_rank, no_rois=True), distilled),
        no_objects=(partial(odd_rank, no_rois=False), masked),
        download=(teacher_from, helpers.distilled_config(teacher_config, server[0])),
    )
    helpers.run_ranks(work, jobs, folder)
    return [torch.load(folder / f'{rank}.pt') for rank in range(2)]


@pytest.mark.parametrize('which', ['plain', 'distilled', 'learnt'])
def test_two_ranks_are_the_single_process_on_the_same_batch(
    which: str,
    ranks: list[dict],
    plain: ConfigDict,
    distilled: ConfigDict,
    learnt: ConfigDict,
) -> None:
    detector = build(dict(plain=plain, distilled=distilled, learnt=learnt)[which])
    data = join([helpers.batch(**image) for image in IMAGES])
    initial = {key: value.clone() for key, value in weights(detector).items()}
    logs = train(detector, detector, data)
    for step, single in enumerate(logs):
        for key, value in single.items():
            mean = sum(rank[which]['logs'][step][key] for rank in ranks) / 2
            assert mean == pytest.approx(value, rel=1e-4, abs=1e-6), (step, key)
    assert any('loss_kd' in key for key in logs[0]) == (which != 'plain')
    state = weights(detector)
    assert any('learnt_parts' in key for key in state) == (which == 'learnt')
    for key, value in state.items():
        assert torch.equal(ranks[0][which]['state'][key], ranks[1][which]['state'][key]), key
        torch.testing.assert_close(ranks[0][which]['state'][key], value, rtol=1e-4, atol=1e-6)
    moved = max((state[key] - initial[key]).abs().max() for key in initial if 'weight' in key)
    assert moved > 1e-3
    if which == 'learnt':
        block = 'learnt_parts.loss_kd_fgd.levels.0.teacher_context.transform.3.bias'
        assert (state[block] - initial[block]).abs().max() > 1e-4


def test_the_teacher_is_neither_broadcast_nor_reduced(ranks: list[dict], plain: ConfigDict) -> None:
    size = sum(4 * p.numel() for p in helpers.build(plain).parameters())
    for rank in ranks:
        assert torch.equal(rank['own_teacher']['before'], rank['own_teacher']['after'])
        assert rank['own_teacher']['reduced'] == size
    first, second = (rank['own_teacher']['after'] for rank in ranks)
    torch.testing.assert_close(second, first + 1)


@pytest.mark.parametrize('job', ['plain_no_foreground', 'no_foreground', 'no_rois', 'no_objects'])
def test_a_rank_without_foreground_or_rois_keeps_step(job: str, ranks: list[dict]) -> None:
    first, second = (rank[job] for rank in ranks)
    for key, value in first['state'].items():
        assert value.isfinite().all()
        assert torch.equal(value, second['state'][key]), key
    assert len(second['logs']) == STEPS
    if job == 'no_rois':
        assert [logs['loss_kd'] for logs in second['logs']] == [0] * STEPS
        assert all(logs['loss_kd'] > 0 for logs in first['logs'])


def test_one_rank_downloads_the_teacher(ranks: list[dict], server: tuple[str, list[str]]) -> None:
    assert len(server[1]) == 1
    assert server[1][0].startswith('GET /teacher.pth')
    first, second = (rank['download']['teacher'] for rank in ranks)
    assert all(torch.equal(value, second[key]) for key, value in first.items())
