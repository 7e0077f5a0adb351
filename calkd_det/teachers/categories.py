"""Read the categories of a COCO-format annotation file without the rest of the file."""

from __future__ import annotations

import json
import mmap
import re
from pathlib import Path
from typing import Any

from mmengine.fileio import get_local_path

_LIST = re.compile(rb'"categories"\s*:\s*(?=\[)')
_FIRST_READ = 1 << 20  # bytes


def read_categories(ann_file: str, backend_args: dict | None = None) -> list[dict[str, Any]]:
    """Read the ``categories`` of a COCO-format annotation file, in the file's order.

    The images and annotations are not parsed: COCO's training file has 450 MB.

    Args:
        ann_file: Path or URL.
        backend_args: The argument of this name of an mmengine data set.

    Returns:
        Dicts with ``id`` and ``name``, among others.

    Raises:
        OSError: There is no such file.
        ValueError: It is not JSON, or has no such list.
    """
    with get_local_path(ann_file, backend_args=backend_args) as path:
        lists = _find_lists(Path(path))
        if len(lists) == 1:
            return lists[0]
        # Several lists in the file have this name. The right one is at the top level.
        content = json.loads(Path(path).read_text(encoding='utf-8'))
    categories = content.get('categories') if isinstance(content, dict) else None
    if not _is_categories(categories):
        raise ValueError(f"'{ann_file}' has no list of categories with 'id' and 'name'")
    return categories


def _find_lists(path: Path) -> list[list[dict]]:
    """Return every list in the file that is named and looks like ``categories``."""
    if path.stat().st_size == 0:  # which mmap refuses
        return []
    with path.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        starts = [match.end() for match in _LIST.finditer(content)]
        lists = [_decode_value(content, start) for start in starts]
    return [value for value in lists if _is_categories(value)]


def _decode_value(content: mmap.mmap, start: int) -> Any:
    """Return the JSON value that begins at ``start``; None if it has no end."""
    size = _FIRST_READ
    while True:
        text = content[start : start + size].decode('utf-8', errors='replace')
        try:
            return json.JSONDecoder().raw_decode(text)[0]
        except json.JSONDecodeError:
            if start + size >= len(content):
                return None
            size *= 2


def _is_categories(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(category, dict) and {'id', 'name'} <= set(category) for category in value
    )
