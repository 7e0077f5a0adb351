"""No calibration, check, loss or figure of ours does what the host of a GPU waits for.

The operations are looked for on a CPU, where nobody waits; ``make test-gpu`` asks the device.
"""

from __future__ import annotations

import copy
import traceback
from typing import Any

import helpers
import pytest
import torch
from pairs import Pair, distilled_config
from torch import Tensor
from torch.overrides import TorchFunctionMode

from calkd_det.taps import find_tap

READS = {'item', 'tolist', 'cpu', 'numpy', '__bool__', '__float__', '__int__'}
SIZES = {'nonzero', 'argwhere', 'masked_select', 'unique', 'unique_consecutive'}
COPIES = {'tensor', 'as_tensor', 'new_tensor'}
# Of a result that has arrived on the host in the meantime.
ALLOWED = 'finite_watch.py'


class WaitFinder(TorchFunctionMode):
    """Notes calls that wait, with the line of ours that makes them, while it is not paused."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.is_paused = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, '__name__', '')
        if not self.is_paused and self._waits(name, args):
            ours = [f for f in traceback.extract_stack() if 'calkd_det' in f.filename]
            place = f'{ours[-1].filename}:{ours[-1].lineno}' if ours else 'elsewhere'
            if ALLOWED not in place:
                self.found.append(f'{name} at {place}')
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _waits(name: str, args: tuple) -> bool:
        if name in ('__getitem__', '__setitem__'):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            return any(
                isinstance(i, list) or (isinstance(i, Tensor) and i.dtype == torch.bool)
                for i in index
            )
        return name in READS | SIZES | COPIES or (name == 'where' and len(args) == 1)


@pytest.mark.skipif(helpers.TORCH_2_1, reason='torch 2.1 tells a mode of no indexing')
def test_the_finder_finds() -> None:
    with WaitFinder() as finder:
        x = torch.ones(3)
        x[x > 0].sum().item()
        x.new_tensor([1.0])
    assert [what.split()[0] for what in finder.found] == ['__getitem__', 'item', 'new_tensor']


def test_our_part_of_a_step_waits_for_nothing(pair: Pair) -> None:
    data = pair.case.batch()
    inputs = pair.detector.data_preprocessor(copy.deepcopy(data), True)['inputs']
    width = pair.detector.extract_feat(inputs)[0].shape[1]
    cfg = distilled_config(pair.case, pair.checkpoint)
    cfg.distillation = dict(
        cls=dict(pair.case.distillation),
        pkd=dict(type='PKDLoss', num_levels=None),
        cwd=dict(type='CWDLoss'),
        fgd=dict(type='FGDLoss', student_channels=width, teacher_channels=width, num_levels=1),
    )
    if 'box' in find_tap(pair.detector, 'model').kinds(pair.detector):
        cfg.distillation.bbox = dict(type='BoxKDLoss')
    detector = helpers.build(cfg)
    detector.init_weights()
    detector.train()
    helpers.loss(detector, data)  # what is checked in the first step alone
    finder = WaitFinder()
    teacher, ours = detector.teacher, detector.distillation_losses

    def ask(*args: Any) -> Any:
        finder.is_paused = True  # the teacher's network waits as mmdet's own prediction does
        answers = teacher(*args)
        finder.is_paused = False
        return answers

    def watch(*args: Any) -> Any:
        detector.teacher = ask
        with finder:
            losses = ours(*args)
            sum(value for name, value in losses.items() if 'loss' in name).backward(
                retain_graph=True
            )
        detector.teacher = teacher
        return losses

    detector.distillation_losses = watch
    helpers.loss(detector, data)
    assert finder.found == []
