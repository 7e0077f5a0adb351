"""Read configs, check their values, and build modules from them."""

from __future__ import annotations

import copy
import inspect
import math
import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import Registry

from calkd_det.errors import CalKDError, ConfigError, did_you_mean

DELETE_KEY = '_delete_'


def config_path(name: str) -> str:
    """Return the absolute path of one of this project's configs, for ``_base_`` in another one.

    mmengine's ``_base_ = 'package::file'`` has a closed list of packages. This does the same for
    CalKD-Det::

        _base_ = __import__('calkd_det').config_path('faster_rcnn/NAME.py')

    Args:
        name: The file, relative to ``configs/``, with ``/`` between folders.

    Raises:
        ConfigError: There is no such config.
    """
    package = Path(__file__).resolve().parent
    roots = [package / '.mim' / 'configs', package.parent / 'configs']
    root = next((folder for folder in roots if folder.is_dir()), roots[0])
    path = root / name
    if not path.is_file():
        known = [str(p.relative_to(root).as_posix()) for p in root.rglob('*.py')]
        raise ConfigError(f"CalKD-Det has no config '{name}': {did_you_mean(name, known)}")
    return str(path)


def read_config(name: str | Path, options: Mapping[str, Any] | None = None) -> Config:
    """Read a config and change it by options.

    Args:
        name: A path, or ``mmdet::FAMILY/NAME.py``.
        options: Values to change, by their dotted keys.

    Raises:
        ConfigError: It cannot be read, or an option does not fit it.
    """
    try:
        cfg = get_config(name) if '::' in str(name) else Config.fromfile(name)
    # mmengine raises AssertionError for a wrong name, and anything for a wrong file.
    except Exception as error:
        raise ConfigError(f"cannot read '{name}' ({type(error).__name__}: {error})") from error
    merge_options(cfg, options or {}, f"of '{name}'")
    return cfg


def merge_options(cfg: Config, options: Mapping[str, Any], what: str) -> None:
    """Change a config by dotted keys.

    Args:
        cfg: The config. It is changed in place.
        options: New values by their dotted keys.
        what: How the message names the config, such as ``of 'NAME'``.

    Raises:
        ConfigError: An option does not fit the config.
    """
    try:
        cfg.merge_from_dict(copy.deepcopy(dict(options)))
    # mmengine raises anything, for instance on a list index out of range or a key of a number.
    except Exception as error:
        raise ConfigError(f'cfg_options {what}: {type(error).__name__}: {error}') from error


def check_number(value: Any, key: str, *, minimum_open: bool = True, hint: str = '') -> float:
    """Check that a config value is a finite number > 0, or >= 0.

    Args:
        value: What the config holds.
        key: Its key, as the user writes it, e.g. ``distillation.tau``.
        minimum_open: Whether zero is refused.
        hint: What else the key takes, e.g. ``or the path of a calibration file``.

    Returns:
        The value as a ``float``.

    Raises:
        ConfigError: It is not a number, not finite, or out of range.
    """
    wanted = f'a finite number {"> 0" if minimum_open else ">= 0"}{hint and f", {hint}"}'
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ConfigError(f'{key} must be {wanted}, but is {value!r} ({type(value).__name__})')
    value = float(value)
    if not math.isfinite(value) or value < 0 or (minimum_open and value == 0):
        raise ConfigError(f'{key} must be {wanted}, but is {value}')
    return value


def without_delete_keys(cfg: Any) -> Any:
    """Return a copy of a config without ``_delete_``, at any depth.

    mmengine removes the key where it replaces a dict of the base config, and keeps it where the
    base config has no such dict.
    """
    if isinstance(cfg, Mapping):
        kind = type(cfg) if isinstance(cfg, dict) else dict
        return kind({k: without_delete_keys(v) for k, v in cfg.items() if k != DELETE_KEY})
    if type(cfg) in (list, tuple):
        return type(cfg)(without_delete_keys(part) for part in cfg)
    return cfg


def inheritance_hint(key: str) -> str:
    """Return advice on a dict that was merged with that of the base config by mistake."""
    return (
        'What your own config does not write, a key or a type, comes from its base config, whose '
        'dicts yours are merged into; to replace one as a whole write '
        f'{key.rpartition(".")[2]}=dict({DELETE_KEY}=True, ...)'
    )


def check_keys(cfg: Any, key: str, *, known: set[str], required: set[str] = frozenset()) -> None:
    """Check that ``cfg`` is a dict with known keys only and with all required keys.

    Raises:
        ConfigError: It is not. The message names ``key`` and the unknown or missing entry.
    """
    if not isinstance(cfg, Mapping):
        raise ConfigError(f'{key} must be a dict, but is {cfg!r} ({type(cfg).__name__})')
    for name in cfg:
        if name not in known:
            raise ConfigError(f'{key} has no key {name!r}: {did_you_mean(str(name), known)}')
    for name in sorted(required - set(cfg)):
        raise ConfigError(f'{key}.{name} is missing')


def build_from_config(registry: Registry, cfg: Any, key: str) -> Any:
    """Build an object from a registry, with errors that name the config key.

    Args:
        registry: The mmdet registry to build from.
        cfg: A dict with ``type``. It is not changed.
        key: Its key in the config, e.g. ``distillation``.

    Raises:
        ConfigError: ``cfg`` is no dict with ``type``, the type is not registered, an argument is
            unknown or missing, or the type cannot be built for another reason.
    """
    if not isinstance(cfg, Mapping):
        raise ConfigError(
            f"{key} must be a dict with a 'type', but is {cfg!r} ({type(cfg).__name__})"
        )
    cfg = without_delete_keys(cfg)
    if 'type' not in cfg:
        raise ConfigError(f"{key}.type is missing: say which class to build, e.g. type='...'")
    target = cfg['type']
    if not callable(target) and not (isinstance(target, str) and target):
        raise ConfigError(f'{key}.type must be a class or its name, but is {target!r}')
    try:
        cls = registry.get(target) if isinstance(target, str) else target
        if cls is not None:
            _check_arguments(registry, cls, cfg, key)
            # mmdet's builders change the config they are given.
            return registry.build(copy.deepcopy(dict(cfg)))
    except CalKDError:
        raise
    # A class may raise anything on a wrong argument; the message names the config key.
    except Exception as error:
        raise ConfigError(
            f'{key}: cannot build {target!r} ({type(error).__name__}: {error})'
        ) from error
    near = did_you_mean(target, registry.module_dict)
    near = near if near.startswith('did') else 'is the module that registers it imported?'
    raise ConfigError(f'{key}.type: nothing is registered as {target!r}; {near}')


def _check_arguments(registry: Registry, cls: Any, cfg: Mapping, key: str) -> None:
    parameters = inspect.signature(cls).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    named = {p.name for p in parameters.values() if p.kind is not p.VAR_POSITIONAL}
    required = {name for name in named if parameters[name].default is inspect.Parameter.empty}
    known = named | {'type', '_scope_'}
    unknown = [name for name in cfg if name not in known]
    # An unknown key that holds a dict, or that another type takes, was inherited, not mistyped.
    inherited = [
        n for n in unknown if isinstance(cfg[n], Mapping) or _another_class_takes(registry, cls, n)
    ]
    if inherited:
        raise ConfigError(
            f'{key} has no key {inherited[0]!r}: {cls.__name__} does not take it, '
            f'{did_you_mean(inherited[0], known).rstrip("?")}. {inheritance_hint(key)}'
        )
    check_keys(cfg, key, known=known, required=required)


def _another_class_takes(registry: Registry, cls: Any, name: str) -> bool:
    """Return whether another class of the same packages takes an argument of this name."""
    packages = {__name__.partition('.')[0], cls.__module__.partition('.')[0]}
    return any(
        name in inspect.signature(other.__init__).parameters
        for other in registry.module_dict.values()
        if isinstance(other, type) and other.__module__.partition('.')[0] in packages
    )
