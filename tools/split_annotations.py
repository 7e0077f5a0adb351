"""``calkd split`` as a file."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from calkd_cli.main import run_command


def main(argv: Sequence[str] | None = None) -> int:
    return run_command('split', argv)


if __name__ == '__main__':
    sys.exit(main())
