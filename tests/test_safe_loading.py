from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub

import calkd_det  # noqa: F401  registers the safe globals


def test_what_a_runner_saves_is_loaded(tmp_path: Path) -> None:
    hub = MessageHub.get_instance('safe_loading')
    hub.update_scalars({'train/loss': torch.tensor(1.5), 'train/lr': 0.1, 'n': np.float32(2)})
    hub.update_info_dict({'iter': np.int64(3), 'best': np.float64(0.25), 'half': np.float16(1)})
    torch.save(dict(message_hub=hub.state_dict()), tmp_path / 'runner.pth')
    loaded = torch.load(tmp_path / 'runner.pth', weights_only=True)['message_hub']
    buffer = loaded['log_scalars']['train/loss']
    assert isinstance(buffer, HistoryBuffer)
    assert buffer.mean() == 1.5
    assert loaded['runtime_info']['best'] == 0.25


class Call:
    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple:
        return self.function, self.args


@pytest.mark.parametrize(
    'payload',
    [
        Call(os.mkdir, 'executed'),
        Call(getattr, HistoryBuffer, '__init__'),
        Call(getattr, HistoryBuffer, 'register_statistics'),
        Call(getattr, np.ndarray, 'tofile'),
        Call(eval, '__import__("os").mkdir("executed")'),
    ],
)
def test_nothing_else_became_safe(
    payload: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(dict(payload=payload), 'evil.pth')
    with pytest.raises((pickle.UnpicklingError, ValueError)):
        torch.load('evil.pth', weights_only=True)
    assert not (tmp_path / 'executed').exists()
