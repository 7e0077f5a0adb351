"""Read this project's part of a config: checks that speak of the key, and registry builds."""

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
    """Absolute path of one of this project's config files, for ``_base_`` in a user's own config.

    mmengine's ``_base_ = 'package::file'`` knows a closed list of packages; this does the same
    for CalKD-Det::

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
    """Read a config.

    Args:
        name: A path, or ``mmdet::FAMILY/NAME.py``.
        options: Values to change, by their dotted keys.

    Raises:
        ConfigError: It cannot be read, or an option does not fit it.
    """
    try:
        cfg = get_config(name) if '::' in str(name) else Config.fromfile(name)
    # mmengine reports a bad name by assertion, a bad file by whatever its parser raises.
    except Exception as error:
        raise ConfigError(f"cannot read '{name}' ({type(error).__name__}: {error})") from error
    merge_options(cfg, options or {}, f"of '{name}'")
    return cfg


def merge_options(cfg: Config, options: Mapping[str, Any], what: str) -> None:
    """Change a config by dotted keys.

    Args:
        cfg: Is changed.
        options: Values by their keys.
        what: What the message calls the config, such as ``of 'NAME'``.

    Raises:
        ConfigError: An option does not fit the config.
    """
    try:
        cfg.merge_from_dict(copy.deepcopy(dict(options)))
    # A list index out of range, a key below what is no dict: mmengine has no error of its own.
    except Exception as error:
        raise ConfigError(f'cfg_options {what}: {type(error).__name__}: {error}') from error


def check_number(value: Any, key: str, *, minimum_open: bool = True, hint: str = '') -> float:
    """Checks that a config value is a finite number above zero (or, if not open, zero too).

    Args:
        value: What the config holds.
        key: Where it stands, as the user writes it, e.g. ``distillation.tau``.
        minimum_open: Whether zero itself is refused.
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

    mmengine takes the key out where it replaces a dict of the base config, and leaves it in where
    the base has none.
    """
    if isinstance(cfg, Mapping):
        kind = type(cfg) if isinstance(cfg, dict) else dict
        return kind({k: without_delete_keys(v) for k, v in cfg.items() if k != DELETE_KEY})
    if type(cfg) in (list, tuple):
        return type(cfg)(without_delete_keys(part) for part in cfg)
    return cfg


def inheritance_hint(key: str) -> str:
    """Return what to write where a dict was merged with that of the base config by mistake."""
    return (
        'What your own config does not write, a key or a type, comes from its base config, whose '
        'dicts yours are merged into; to replace one as a whole write '
        f'{key.rpartition(".")[2]}=dict({DELETE_KEY}=True, ...)'
    )


def check_keys(cfg: Any, key: str, *, known: set[str], required: set[str] = frozenset()) -> None:
    """Checks that ``cfg`` is a dict whose keys are all known and that lacks none of the required.

    Raises:
        ConfigError: Naming ``key`` and the offending or missing entry.
    """
    if not isinstance(cfg, Mapping):
        raise ConfigError(f'{key} must be a dict, but is {cfg!r} ({type(cfg).__name__})')
    for name in cfg:
        if name not in known:
            raise ConfigError(f'{key} has no key {name!r}: {did_you_mean(str(name), known)}')
    for name in sorted(required - set(cfg)):
        raise ConfigError(f'{key}.{name} is missing')


def build_from_config(registry: Registry, cfg: Any, key: str) -> Any:
    """Builds ``cfg`` from a registry, and explains a wrong ``type`` or argument by its key.

    Args:
        registry: The mmdet registry to build from.
        cfg: A dict with ``type``. It is not changed.
        key: Where it stands in the config, e.g. ``distillation``.

    Raises:
        ConfigError: Not a dict with ``type``, a type nobody registered, an argument that the
            type does not take or that is missing, or whatever else keeps it from being built.
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
    # Whatever the class raises on an argument it cannot take, the user must be told whose it is.
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
    # A whole dict, or the argument of another type, is no slip of the pen.
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
    """Return whether a class that may stand in the place of another has an argument."""
    packages = {__name__.partition('.')[0], cls.__module__.partition('.')[0]}
    return any(
        name in inspect.signature(other.__init__).parameters
        for other in registry.module_dict.values()
        if isinstance(other, type) and other.__module__.partition('.')[0] in packages
    )
