"""The docs say what works with what as the tests of all detectors have tried it."""

from __future__ import annotations

import support_table


def test_the_page_is_up_to_date() -> None:
    page = support_table.PAGE.read_text('utf-8')
    assert page == support_table.filled_page(), 'run python tests/support_table.py'
