from __future__ import annotations

import pytest
from mmengine.visualization import Visualizer


@pytest.fixture(autouse=True)
def _no_visualizer() -> None:
    """Forget the visualizer of another test's run, which would get a diagram of each evaluation."""
    Visualizer._instance_dict.clear()
