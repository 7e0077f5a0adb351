"""mmdet's model zoo and this project's configs, read once a test session."""

from __future__ import annotations

import functools
import pickle
from pathlib import Path
from typing import Any

import mmdet
from mmengine.config import Config, config, utils
from mmengine.hub import hub

ZOO = Path(mmdet.__file__).absolute().parent / '.mim'
OWN = Path(__file__).absolute().parents[1]
ROOTS = (ZOO, OWN / 'configs', OWN / 'calkd_det' / '.mim')
_file2dict = Config._file2dict


@functools.cache
def _pickled_config(filename: str, *args: Any, **kwargs: Any) -> bytes:
    return pickle.dumps(_file2dict(filename, *args, **kwargs))


def _read_config(filename: str, *args: Any, **kwargs: Any) -> tuple[dict, str, dict]:
    """Read a config as mmengine does; each caller gets a copy of its own."""
    path = Path(filename).expanduser().absolute()
    if not (path.is_file() and any(root in path.parents for root in ROOTS)):
        return _file2dict(filename, *args, **kwargs)
    return pickle.loads(_pickled_config(str(path), *args, **kwargs))


def read_zoo_once() -> None:
    """Make mmengine read the zoo's index, and each of its configs, once in this process.

    It reads a hundred files of the index for each name in the zoo, a config's bases for each
    config, also of this project's, and the list of all installed packages for each name. None of
    it changes while tests run.
    """
    config.is_installed = functools.cache(config.is_installed)
    utils.load = functools.cache(utils.load)
    hub.install_package = functools.cache(hub.install_package)
    Config._file2dict = staticmethod(_read_config)
