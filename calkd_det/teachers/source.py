"""The source of a teacher: its config and the checkpoint that belongs to it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config

from calkd_det.errors import ConfigError, TeacherError
from calkd_det.teachers.class_names import configured_class_names

CONFIG_KEY = 'model.teacher.config'
CHECKPOINT_KEY = 'model.teacher.checkpoint'


@dataclass(frozen=True)
class TeacherSource:
    """The model config, checkpoint and class names of a teacher.

    Attributes:
        model: The detector's config, ready for ``MODELS.build``.
        checkpoint: Path or URL of its weights.
        classes: The class names of the config's training data, None where it has no data.
        dataset: The config of its training data set, None where it has none.
    """

    model: ConfigDict
    checkpoint: str
    classes: tuple[str, ...] | None
    dataset: Mapping | None = None


def check_source(config: Any, checkpoint: Any) -> None:
    """Check, without reading a file, that config and checkpoint can belong to a teacher.

    Raises:
        ConfigError: A value has a wrong type, or there is no checkpoint for a config that is not
            from the model zoo.
    """
    if not isinstance(config, (str, Mapping)) or not config:
        raise ConfigError(
            f"{CONFIG_KEY} must be the path of an mmdet config, 'mmdet::FAMILY/NAME.py' or a "
            f'dict, but is {config!r} ({type(config).__name__})'
        )
    if isinstance(config, Mapping) and 'model' not in config and 'type' not in config:
        raise ConfigError(
            f"{CONFIG_KEY}: a dict must be a whole config with 'model', or the model itself with "
            f"'type', but has the keys {sorted(config)}"
        )
    if checkpoint is None:
        if not (isinstance(config, str) and '::' in config):
            raise ConfigError(
                f'{CHECKPOINT_KEY} is None, which means the checkpoint of the model zoo: that '
                f"needs {CONFIG_KEY}='mmdet::...'; for a config of your own give the path or URL "
                'of the checkpoint'
            )
    elif not isinstance(checkpoint, str) or not checkpoint:
        raise ConfigError(
            f'{CHECKPOINT_KEY} must be a path, a URL or None, but is {checkpoint!r} '
            f'({type(checkpoint).__name__})'
        )


def read_source(config: str | Mapping, checkpoint: str | None) -> TeacherSource:
    """Read the teacher's config and find its checkpoint, without loading weights.

    Args:
        config: Path, ``mmdet::FAMILY/NAME.py``, a whole config as a dict, or the dict of the
            model alone.
        checkpoint: Path or URL; None for the one that the model zoo lists for ``config``.

    Raises:
        ConfigError: See :func:`check_source`.
        TeacherError: The config cannot be read, or the zoo lists no checkpoint for it.
    """
    check_source(config, checkpoint)
    cfg = _read_config(config, zoo=checkpoint is None)
    model = copy.deepcopy(cfg.get('model', cfg))
    if 'data_preprocessor' in cfg:
        model.setdefault('data_preprocessor', copy.deepcopy(cfg.data_preprocessor))
    return TeacherSource(
        model=model,
        checkpoint=checkpoint or cfg.model_path,
        classes=_config_classes(cfg),
        dataset=_train_dataset(cfg),
    )


def _read_config(config: str | Mapping, *, zoo: bool) -> Config | ConfigDict:
    if isinstance(config, Mapping):
        return ConfigDict(copy.deepcopy(dict(config)))
    try:
        if '::' in config:
            return get_config(config, pretrained=zoo)
        return Config.fromfile(config)
    # mmengine raises AssertionError for a wrong name, and anything for a wrong file.
    except Exception as error:
        what = 'find this config and its checkpoint in the model zoo' if zoo else 'read'
        raise TeacherError(
            f"{CONFIG_KEY}: cannot {what}: '{config}' ({type(error).__name__}: {error})"
        ) from error


def _train_dataset(cfg: Mapping) -> Any:
    dataloader = cfg.get('train_dataloader')
    return dataloader.get('dataset') if isinstance(dataloader, Mapping) else None


def _config_classes(cfg: Mapping) -> tuple[str, ...] | None:
    dataset = _train_dataset(cfg)
    try:
        return configured_class_names(dataset)
    # A malformed config raises AttributeError, TypeError and others, by the part that is wrong.
    except Exception as error:
        raise TeacherError(
            f'{CONFIG_KEY}: cannot read the class names of train_dataloader.dataset; give it '
            f'metainfo=dict(classes=(...)) ({type(error).__name__}: {error})'
        ) from error
