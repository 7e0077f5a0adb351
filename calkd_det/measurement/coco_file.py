"""COCO annotation files."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from calkd_det.errors import ConfigError

_LISTS = ('images', 'annotations', 'categories')


def read_coco(path: Path) -> dict[str, Any]:
    """Read an annotation file.

    Raises:
        ConfigError: It is missing, is no JSON, or lists no images, annotations or categories.
    """
    try:
        with _without_garbage_collection():
            content = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise ConfigError(f"there is no annotation file '{path}'") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"cannot read '{path}' as JSON: {error}") from error
    if not (isinstance(content, dict) and all(isinstance(content.get(k), list) for k in _LISTS)):
        raise ConfigError(f"'{path}' is no COCO annotation file: it lacks one of {_LISTS}")
    for name in _LISTS:
        if not content[name]:
            raise ConfigError(f"'{path}' lists no {name}")
    return content


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Keep the collector from looking through millions of new objects, which takes a third more."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
