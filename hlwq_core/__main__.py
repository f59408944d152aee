"""The way in of `python -m hlwq_core`."""

import sys

from .cli import main

sys.exit(main())
