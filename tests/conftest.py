"""What all tests share: the laboratory's fixtures, Hypothesis without deadlines (no test judges speed), signals."""

from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.not_applicable", "tests.lab.fixtures", "tests.lab.lock_holder", "tests.real.agent_process"]

# A machine that is busy is slow to generate examples, which is no fault of the code's.
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# In CI the same examples every time: a red run is one that can be had again.
settings.register_profile("ci", settings.get_profile("here"), derandomize=True, print_blob=True)
settings.load_profile("ci" if "CI" in os.environ else "here")

# GNU readline, which pytest imports, tells every child of ours a width that no terminal has.
os.unsetenv("COLUMNS")

# A script's background job ignores SIGINT, and so does all that it starts; some tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# As Ctrl-C, so that fixtures give KSM back and end what they have started.
signal.signal(signal.SIGTERM, signal.default_int_handler)
