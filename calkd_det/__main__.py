"""``python -m calkd_det``, the same as ``calkd``."""

import sys

from calkd_cli import main

sys.exit(main())
