"""How often the host waits for the device in a distilled step of a detection transformer.

The operations counted are those at which a GPU's host waits. They are the same on a CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import helpers
import pytest
import query_cases
import torch
from helpers import CLASSES
from mmdet.models.dense_heads import DETRHead
from pairs import save
from query_cases import distilled
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from calkd_det.taps import queries

WAITING = {'nonzero', '_local_scalar_dense', 'masked_select', '_unique2', 'unique_dim'}
LAYERS = 3


class WaitCounter(TorchDispatchMode):
    """Counts operations that wait, and copies to the CPU, while it is not paused."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.copies = 0
        self.is_paused = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        if not self.is_paused and func._schema.name.removeprefix('aten::') in WAITING:
            self.count += 1
        return func(*args, **(kwargs or {}))

    def note_copy(self) -> None:
        if not self.is_paused:
            self.count += 1
            self.copies += 1

    @contextmanager
    def paused(self, value: bool = True) -> Iterator[None]:
        before, self.is_paused = self.is_paused, value
        yield
        self.is_paused = before


def within(counter: WaitCounter, function: Callable, is_paused: bool) -> Callable:
    """The function, with a counter that is paused within it, or that counts within it alone."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with counter.paused(is_paused):
            return function(*args, **kwargs)

    return wrapped


def run(detector: nn.Module, counter: WaitCounter, images: int) -> None:
    data = helpers.batch(sizes=[(64, 96)] * images)
    torch.manual_seed(0)
    batch = detector.data_preprocessor(copy.deepcopy(data), True)
    with counter:
        detector.loss(batch['inputs'], batch['data_samples'])


@pytest.mark.parametrize('name', ['DETR', 'Deformable DETR', 'DINO'])
@pytest.mark.parametrize('images', [1, 2])
def test_distillation_waits_less_often_than_mmdets_own_assignment(
    name: str, images: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = query_cases.detector_config(name, layers=LAYERS)
    save(helpers.build(cfg, seed=1), tmp_path / 'teacher.pth', CLASSES)
    options = dict(denoising=True) if name == 'DINO' else {}
    student = distilled(cfg, cfg, tmp_path / 'teacher.pth', **options)
    helpers.loss(student, helpers.batch())  # what is checked in the first step alone
    plain = helpers.build(cfg).train()
    counters = {key: WaitCounter() for key in ('plain', 'distilled', 'assigned')}
    cpu = Tensor.cpu

    with monkeypatch.context() as patch:
        # The teacher's network waits as mmdet's own prediction does.
        predict = within(counters['distilled'], queries.predict_queries, is_paused=True)
        patch.setattr(queries, 'predict_queries', predict)
        for key, detector in (('plain', plain), ('distilled', student)):
            counter = counters[key]
            patch.setattr(Tensor, 'cpu', lambda self, c=counter: (c.note_copy(), cpu(self))[1])
            run(detector, counter, images)
    with monkeypatch.context() as patch:
        counter = counters['assigned']
        counter.is_paused = True
        patch.setattr(Tensor, 'cpu', lambda self: (counter.note_copy(), cpu(self))[1])
        single = within(counter, DETRHead._get_targets_single, is_paused=False)
        patch.setattr(DETRHead, '_get_targets_single', single)
        run(plain, counter, images)

    assigned = counters['assigned']
    assert assigned.copies >= LAYERS * images
    assert counters['distilled'].copies - counters['plain'].copies == 1
    more = counters['distilled'].count - counters['plain'].count
    # The matching, and the foreground rows of the boxes of each layer and of denoising queries.
    assert more == 1 + LAYERS + (name == 'DINO')
    assert more < assigned.count
