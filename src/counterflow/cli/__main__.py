"""`python -m counterflow.cli`, the same as `counterflow`."""

import sys

from counterflow.cli import main

sys.exit(main())
