"""``python -m calkd_cli``."""

import sys

from calkd_cli.main import main

sys.exit(main())
