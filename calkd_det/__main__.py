"""Run the command line ``calkd`` as ``python -m calkd_det``."""

import sys

from calkd_cli import main

sys.exit(main())
