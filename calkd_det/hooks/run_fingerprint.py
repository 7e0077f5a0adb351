"""Record what runs must share to be compared as a pair: initial weights and order of the data."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import HOOKS
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from calkd_det.detectors.runner_data import unwrapped_model
from calkd_det.teachers.sharing import tensor_bytes

FINGERPRINT_FILE = 'fingerprint.json'


@HOOKS.register_module()
class RunFingerprintHook(Hook):
    """Write ``fingerprint.json`` into the run's folder when the training ends.

    It holds a hash of the weights that the training started from, and one of the ids and sizes of
    its images, in their order. ``resumed`` is true for a training that was resumed: its hashes are
    of the last part alone.
    """

    priority = 'VERY_LOW'

    def before_train(self, runner: Runner) -> None:
        model = unwrapped_model(runner)
        self._weights = hash_weights(model.state_dict())
        self._order = hashlib.sha256()
        self._start = runner.iter

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
        if isinstance(samples, (list, tuple)):
            images = [(sample.get('img_id'), tuple(sample.img_shape[:2])) for sample in samples]
            self._order.update(repr(images).encode())

    def after_train(self, runner: Runner) -> None:
        if is_main_process():
            content = {
                'initial_weights': self._weights,
                'data_order': self._order.hexdigest()[:16],
                'iterations': runner.iter,
                'resumed': self._start > 0,
            }
            path = Path(runner.work_dir) / FINGERPRINT_FILE
            path.write_text(json.dumps(content, indent=2) + '\n', 'utf-8')


def hash_weights(state: dict[str, torch.Tensor]) -> str:
    """Return a hash of a state dict: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f'{name} {value.dtype} {tuple(value.shape)}'.encode())
        digest.update(tensor_bytes(value))
    return digest.hexdigest()[:16]
