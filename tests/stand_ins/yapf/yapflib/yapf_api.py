from __future__ import annotations

import ast
from typing import Any


def FormatCode(code: str, **kwargs: Any) -> tuple[str, bool]:
    """Return the code as it is.

    Raises:
        SyntaxError: The code cannot be parsed, as in yapf's.
    """
    ast.parse(code)
    return code, False
