"""Make ``python -m minires`` the same as ``minires``."""

import sys

from minires.cli import main

sys.exit(main())
