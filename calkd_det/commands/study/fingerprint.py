"""Notes what pairs of runs must share: the initial weights and the order of the data."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import HOOKS
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from calkd_det.commands.study.rows import write_json
from calkd_det.teachers.sharing import tensor_bytes

FILE = 'fingerprint.json'


@HOOKS.register_module()
class RunFingerprintHook(Hook):
    """Writes ``fingerprint.json`` into the run's folder when the training ends.

    It holds hashes of the weights that the training started from, and of the ids and sizes of
    the images that it saw, in their order; of a resumed training, which saw only a part of them,
    it says so.
    """

    priority = 'VERY_LOW'

    def before_train(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._weights = hash_weights(model.state_dict())
        self._order = hashlib.sha256()
        self._start = runner.iter

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
        if isinstance(samples, (list, tuple)):
            seen = [(sample.get('img_id'), tuple(sample.img_shape[:2])) for sample in samples]
            self._order.update(repr(seen).encode())

    def after_train(self, runner: Runner) -> None:
        if is_main_process():
            content = {
                'initial_weights': self._weights,
                'data_order': self._order.hexdigest()[:16],
                'iterations': runner.iter,
                'resumed': self._start > 0,
            }
            write_json(Path(runner.work_dir) / FILE, content)


def hash_weights(state: dict[str, torch.Tensor]) -> str:
    """The hash of a state dict: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f'{name} {value.dtype} {tuple(value.shape)}'.encode())
        digest.update(tensor_bytes(value))
    return digest.hexdigest()[:16]
