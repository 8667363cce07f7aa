"""`python -m pipelines` is `corrdiff`."""

import sys

from pipelines.cli import main

sys.exit(main())
