"""`python -m virtksm`."""

import sys

from virtksm.cli.main import main

sys.exit(main())
