"""What a CPU cannot show. Run with ``make test-gpu``; skipped where torch finds no CUDA device."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from torch import distributed, multiprocessing, nn

from calkd_det.calibration.reliability import ReliabilityAccumulator
from calkd_det.taps import find_taps

# torch's deterministic mode asks for it before the first use of cuBLAS.
os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='torch finds no CUDA device'),
]

Teacher = tuple[nn.Module, Path]
LOSSES = dict(
    cls=dict(type='KDLoss'),
    bbox=dict(type='BoxKDLoss'),
    pkd=dict(type='PKDLoss'),
    cwd=dict(type='CWDLoss'),
    mgd=dict(type='MGDLoss', loss_weight=1e-3, student_channels=16, teacher_channels=16),
)


@pytest.fixture
def detector(teacher_config: ConfigDict, teacher: Teacher) -> nn.Module:
    cfg = helpers.distilled_config(teacher_config, teacher[1])
    cfg.distillation = LOSSES
    detector = helpers.build(cfg)
    detector.init_weights()
    return detector.train()


@contextlib.contextmanager
def sync_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode('error')
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode('default')


def knowledge_of(detector: nn.Module, data: dict[str, Any]) -> tuple[tuple, list]:
    """The teacher's features of a batch, and what the student computed in its own loss."""
    shapes = [sample.img_shape[:2] for sample in data['data_samples']]
    feats = detector.teacher.extract_feat(data['inputs'], shapes)
    taps = find_taps(detector, detector.knowledge_kinds, 'model')
    distillation, detector.distillation = detector.distillation, {}
    with taps.record(detector, data['data_samples']) as knowledge:
        detector.loss(data['inputs'], data['data_samples'])
    detector.distillation = distillation
    return feats, knowledge


def test_the_losses_are_those_of_the_cpu(detector: nn.Module) -> None:
    """The same knowledge is compared, because the sampling of RoIs differs between devices."""
    data = detector.data_preprocessor(helpers.batch(), True)
    feats, knowledge = knowledge_of(detector, data)
    (maps,) = (piece for piece in knowledge if piece.noun == 'features')
    for loss in (detector.distillation['loss_kd_pkd'], detector.distillation['loss_kd_cwd']):
        teacher = [
            level[..., : own.shape[-2], : own.shape[-1]] for level, own in zip(feats, maps.maps)
        ]
        on_cpu = loss(maps.maps, teacher, maps.valid)
        on_gpu = loss(
            [level.cuda() for level in maps.maps],
            [level.cuda() for level in teacher],
            None if maps.valid is None else [mask.cuda() for mask in maps.valid],
        )
        torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-4, atol=1e-6)


def test_teacher_and_learnt_parts_move_with_the_student(detector: nn.Module) -> None:
    detector.cuda()
    assert all(p.is_cuda for p in detector.learnt_parts.parameters())
    losses = helpers.loss(detector, helpers.batch())
    total, logs = detector.parse_losses(losses)
    total.backward()
    assert total.is_cuda
    assert sum('loss_kd' in name for name in logs) == len(LOSSES)
    assert all(p.grad.isfinite().all() for p in detector.parameters() if p.grad is not None)
    detector.cpu()
    assert helpers.loss(detector, helpers.batch())['loss_kd_cls'].device.type == 'cpu'


def test_float16_with_a_gradient_scaler(detector: nn.Module) -> None:
    detector.cuda()
    wrapper = build_optim_wrapper(
        detector,
        dict(type='AmpOptimWrapper', loss_scale='dynamic', optimizer=dict(type='SGD', lr=1e-3)),
    )
    for seed in range(3):
        logs = detector.train_step(helpers.batch(seed=seed), wrapper)
        assert all(value.isfinite().all() for value in logs.values())
    assert all(p.isfinite().all() for p in detector.parameters())


def our_part(detector: nn.Module) -> Callable[[], None]:
    """Calibration, checks, losses and their backward pass, with all that they need at hand."""
    detector.cuda()
    helpers.loss(detector, helpers.batch())  # builds the teacher
    data = detector.data_preprocessor(helpers.batch(), True)
    feats, knowledge = knowledge_of(detector, data)
    knowledge = detector.teacher.taught(knowledge)
    answers = detector.teacher(feats, knowledge)  # mmdet's RoI extractor waits for the device
    detector.teacher = lambda feats, knowledge: answers

    def run() -> None:
        losses = detector.distillation_losses(feats, knowledge)
        sum(value for name, value in losses.items() if 'loss' in name).backward()

    return run


def test_our_part_of_a_step_does_not_wait_for_the_device(detector: nn.Module) -> None:
    run = our_part(detector)
    with sync_is_an_error():
        run()


def test_our_part_of_a_step_runs_in_the_deterministic_mode(detector: nn.Module) -> None:
    run = our_part(detector)
    accumulator = ReliabilityAccumulator()
    torch.use_deterministic_algorithms(True)
    try:
        run()
        scores = torch.rand(100, device='cuda')
        accumulator.update_confidences(scores, scores > 0.5)
    finally:
        torch.use_deterministic_algorithms(False)
    assert accumulator.compute().num_samples == 100


def test_memory_is_that_of_student_teacher_and_what_the_losses_keep(
    teacher_config: ConfigDict, teacher: Teacher
) -> None:
    """The student's activations are kept once, the teacher's not at all."""
    data = helpers.batch(sizes=((320, 320), (320, 320)))

    def peak(cfg: ConfigDict) -> int:
        detector = helpers.build(cfg)
        detector.init_weights()
        detector.cuda().train()
        for _ in range(2):  # the first step builds the teacher
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            total, _ = detector.parse_losses(helpers.loss(detector, data))
            total.backward()
        return torch.cuda.max_memory_allocated() - before

    plain = peak(helpers.detector_config())
    distilled = peak(helpers.distilled_config(teacher_config, teacher[1]))
    assert distilled < 1.25 * plain


def train_rank(rank: int, backend: str, cfg: ConfigDict, folder: Path) -> None:
    register_all_modules(init_default_scope=True)
    torch.cuda.set_device(0)
    distributed.init_process_group(
        backend, init_method=f'file://{folder}/meeting', rank=rank, world_size=2
    )
    detector = helpers.build(cfg, seed=rank)
    detector.init_weights()
    detector.cuda().train()
    model = MMDistributedDataParallel(detector, device_ids=[0], broadcast_buffers=False)
    wrapper = build_optim_wrapper(detector, dict(optimizer=dict(type='SGD', lr=1e-3)))
    for step in range(2):
        model.train_step(helpers.batch(seed=2 * step + rank), wrapper)
    # The parts that losses learn are parameters, but in no state dict.
    torch.save(
        {name: p.detach().cpu() for name, p in detector.named_parameters()}, folder / f'{rank}'
    )


@pytest.mark.parametrize('backend', ['nccl', 'gloo'])
def test_two_ranks_on_one_device(
    teacher_config: ConfigDict, teacher: Teacher, tmp_path: Path, backend: str
) -> None:
    cfg = helpers.distilled_config(teacher_config, teacher[1])
    cfg.distillation = LOSSES
    try:
        helpers.run_ranks(train_rank, backend, cfg, tmp_path)
    except multiprocessing.ProcessRaisedException as error:
        if backend == 'nccl' and 'Duplicate GPU' in str(error):
            pytest.skip('this NCCL takes one rank a device')
        raise
    first, second = (torch.load(tmp_path / f'{rank}', weights_only=True) for rank in range(2))
    assert any('learnt_parts' in name for name in first)
    assert all(value.isfinite().all() for value in first.values())
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
