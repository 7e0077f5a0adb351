"""The configs of detectors that mmdet's package carries."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import mmdet
from mmdet.models.detectors import BaseDetector
from mmdet.models.mot import BaseMOTModel
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict

from calkd_det.errors import ConfigError

_BASE = '_base_'
# What stands in a path before the folder of a package.
_FOLDER = re.compile(r'(?:/[^\s"\'/]+)*/(?=(?:mmdet|mmcv|mmengine)/)')


@dataclass(frozen=True)
class ZooConfig:
    """A config of mmdet's package.

    Attributes:
        name: ``FAMILY/NAME.py``, what follows ``mmdet::``.
        model: Its model; None where the config cannot be read here.
        error: Why it cannot be read, '' where it can.
    """

    name: str
    model: ConfigDict | None
    error: str = ''

    @property
    def family(self) -> str:
        """The folder of the config."""
        return self.name.partition('/')[0]


def iterate_configs(pattern: str) -> Iterator[ZooConfig]:
    """Yield the configs of mmdet's package whose model is a detector or a tracker.

    Args:
        pattern: What the names of the configs match, such as ``faster_rcnn/*``.

    Raises:
        ConfigError: This mmdet has no configs, or none that matches.
    """
    root = Path(mmdet.__file__).parent / '.mim' / 'configs'
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob('*.py'))
    names = [name for name in names if _BASE not in name and fnmatchcase(name, pattern)]
    if not names:
        raise ConfigError(
            f"no config of mmdet in '{root}' matches {pattern!r}; write FAMILY/NAME.py, with * for "
            'any letters'
        )
    for name in names:
        try:
            model = Config.fromfile(root / name).get('model')
        # A config is code, and may import packages that are not installed.
        except Exception as error:
            yield ZooConfig(name, None, describe_error(error))
            continue
        if model is not None and _is_detector(model):
            yield ZooConfig(name, model)


def describe_error(error: Exception) -> str:
    """Return the type of an error and the first line of its message.

    Paths begin with the package that they are in, and name no folder of the machine.
    """
    first_line = str(error).strip().split('\n', maxsplit=1)[0]
    return f'{type(error).__name__}: {" ".join(_FOLDER.sub("", first_line).split())}'


def class_name(cfg: ConfigDict) -> str:
    """Return the name of the class that a config builds."""
    target = cfg.get('type')
    return target if isinstance(target, str) else target.__name__


def _is_detector(model: ConfigDict) -> bool:
    cls = MODELS.get(class_name(model))
    return cls is not None and bool({BaseDetector, BaseMOTModel} & set(cls.__mro__))
