from __future__ import annotations

import subprocess
from types import SimpleNamespace

import pytest
from forked import ForkedScript

from calkd_det.commands import engine


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, 'POLL_SECONDS', 0.02)


@pytest.fixture
def forked_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs are forked from a process that has imported the libraries."""
    monkeypatch.setattr(
        engine, 'subprocess', SimpleNamespace(**{**vars(subprocess), 'Popen': ForkedScript})
    )
