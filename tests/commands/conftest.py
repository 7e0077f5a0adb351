from __future__ import annotations

import pytest

from calkd_det.commands import engine


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, 'POLL_SECONDS', 0.02)
