"""What all tests share: the laboratory's fixtures, Hypothesis without deadlines (no test judges speed), signals."""

import os
import signal

from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.not_applicable", "tests.lab.fixtures", "tests.lab.lock_holder", "tests.real.agent_process"]
pytest_plugins += ["tests.fake_proc"]

# The same examples every time: no run is red by luck, and a red one can be had again. New ones are sought with
# `--hypothesis-profile search` (script/release-check). A machine that is busy is slow to generate them, which is no
# fault of the code's.
settings.register_profile("same", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.register_profile("search", settings.get_profile("same"), derandomize=False)
settings.load_profile("same")

# GNU readline, which pytest imports, tells every child of ours a width that no terminal has.
os.unsetenv("COLUMNS")

# A script's background job ignores SIGINT, and so does all that it starts; some tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# As Ctrl-C, so that fixtures give KSM back and end what they have started.
signal.signal(signal.SIGTERM, signal.default_int_handler)
