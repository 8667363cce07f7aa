"""`python -m corrdiff`: encode, decode and inspect single pictures."""

import sys

from corrdiff.cli import main

sys.exit(main())
