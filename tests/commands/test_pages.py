"""Tables written into a page."""

from __future__ import annotations

import pytest

from calkd_det.commands.pages import fill_blocks, table
from calkd_det.errors import CalKDError

PAGE = 'Before\n\n<!-- begin a -->\nold\n<!-- end a -->\n\nAfter <!-- begin b --><!-- end b -->\n'


def test_blocks_are_filled_and_the_rest_is_kept() -> None:
    page = fill_blocks(PAGE, {'a': r'| \1 |', 'b': 'new'})
    assert page == (
        'Before\n\n<!-- begin a -->\n\n| \\1 |\n\n<!-- end a -->\n\n'
        'After <!-- begin b -->\n\nnew\n\n<!-- end b -->\n'
    )
    assert fill_blocks(page, {'a': r'| \1 |', 'b': 'new'}) == page


@pytest.mark.parametrize('page', ['', PAGE + PAGE, '<!-- begin a -->'])
def test_a_block_must_be_there_once(page: str) -> None:
    with pytest.raises(CalKDError, match='must have one <!-- begin a -->'):
        fill_blocks(page, {'a': 'new'})


def test_a_column_of_one_character_has_a_valid_rule() -> None:
    """GitHub's Markdown takes a rule of at least one hyphen, beside the colon of its alignment."""
    lines = table([['a', 'T'], ['b', '1']]).splitlines()
    assert lines == ['| a  |  T |', '| -- | -: |', '| b  |  1 |']
