"""Tables in Markdown, and blocks of a page that a command fills."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from calkd_det.errors import CalKDError


def fill_blocks(page: str, blocks: Mapping[str, str]) -> str:
    """Replace what stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``.

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


def table(rows: Sequence[Sequence[str]], *, texts: int = 1) -> str:
    """Return a Markdown table, aligned so that it also reads as text; its head is first.

    Args:
        rows: The cells.
        texts: The number of columns, from the left, that are aligned to the left.
    """
    # A column that is aligned to the right has a rule of two signs at least.
    widths = [max(2, *map(len, column)) for column in zip(*rows)]
    rule = [
        '-' * width if column < texts else '-' * (width - 1) + ':'
        for column, width in enumerate(widths)
    ]
    aligned = [
        [
            cell.ljust(width) if column < texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        ]
        for row in (rows[0], rule, *rows[1:])
    ]
    return '\n'.join(f'| {" | ".join(row)} |' for row in aligned)
