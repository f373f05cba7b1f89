"""``python -m framert``."""

import sys

from framert.runtime.cli import main

sys.exit(main())
