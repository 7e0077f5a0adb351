"""Tables that a command writes into a page of the docs, between two marks."""

from __future__ import annotations

import re
from collections.abc import Mapping

from calkd_det.errors import CalKDError


def fill_blocks(page: str, blocks: Mapping[str, str]) -> str:
    """Replaces what stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``.

    Args:
        page: Markdown.
        blocks: New content by name.

    Returns:
        The page; the same again for the same blocks.

    Raises:
        CalKDError: The page has no such block, or more than one.
    """
    for name, content in blocks.items():
        begin, end = f'<!-- begin {name} -->', f'<!-- end {name} -->'
        if page.count(begin) != 1 or page.count(end) != 1:
            raise CalKDError(f'the page must have one {begin} and one {end}')
        pattern = re.compile(f'{re.escape(begin)}.*?{re.escape(end)}', re.DOTALL)
        block = f'{begin}\n\n{content.strip()}\n\n{end}'
        page = pattern.sub(lambda match, block=block: block, page)
    return page
