"""How long tests wait for what is going to happen: a guard against hanging, which judges no speed.

`SLOWER=20` in the environment multiplies it, and pytest's limit of each test (tests/lab/fixtures.py), on a machine that
is so much slower: one under software emulation.
"""

import os

SLOWER = int(os.environ.get("SLOWER", "1"))
HANG_S = 100.0 * SLOWER
