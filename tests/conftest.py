from __future__ import annotations

import gc
import logging
import os
import warnings
from pathlib import Path
from types import SimpleNamespace

# Before numpy and torch are imported: as many processes run tests as there are processors.
os.environ['OMP_NUM_THREADS'] = os.environ['OPENBLAS_NUM_THREADS'] = '1'

import helpers
import pytest
import torch
import zoo_cache
from matplotlib.figure import Figure
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.dataset import base_dataset
from torch import nn

import calkd_det  # noqa: F401

STAND_INS = Path(__file__).parent / 'stand_ins'  # pyproject.toml puts it into this process's path

zoo_cache.read_zoo_once()
# mmengine collects garbage whenever it builds a data set, which takes long among so many objects.
base_dataset.gc = SimpleNamespace(collect=lambda: 0)
# Processes that tests start find the stand-ins too.
os.environ['PYTHONPATH'] = os.pathsep.join(
    [str(STAND_INS), *filter(None, [os.environ.get('PYTHONPATH')])]
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with slow tests first, so that no process ends with one while others idle."""
    slow = {item.path for item in items if item.get_closest_marker('slow')}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    # What was imported stays, so no collection need look at it; the rest is looked at less often.
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(autouse=True, scope='session')
def _mmdet() -> None:
    register_all_modules(init_default_scope=True)
    torch.set_num_threads(1)
    logging.getLogger('mmengine').setLevel(logging.ERROR)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    warnings.filterwarnings('ignore', category=UserWarning, module='mmdet|mmengine|torch')


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are empty files: to draw them takes most of a report's time."""
    monkeypatch.setattr(Figure, 'savefig', lambda figure, path: Path(path).touch())


@pytest.fixture(scope='session')
def teacher_config() -> ConfigDict:
    """A teacher twice as wide as the student."""
    return helpers.detector_config(base_channels=16)


@pytest.fixture(scope='session')
def teacher(
    teacher_config: ConfigDict, tmp_path_factory: pytest.TempPathFactory
) -> tuple[nn.Module, Path]:
    """The plain teacher in eval mode, and its checkpoint."""
    path = tmp_path_factory.mktemp('teacher') / 'teacher.pth'
    return helpers.save_teacher(path, teacher_config), path
