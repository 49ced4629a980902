"""What all tests share: the laboratory's fixtures, Hypothesis without deadlines (no test judges speed)."""

import os

from hypothesis import HealthCheck, settings

from tests.lab.signals import end_in_order

pytest_plugins = ["tests.not_applicable", "tests.lab.fixtures", "tests.lab.lock_holder", "tests.real.agent_process"]
pytest_plugins += ["tests.fake_proc"]

# The same examples every time: no run is red by luck, and a red one can be had again. New ones are sought with
# `--hypothesis-profile search` (script/release-check). A machine that is busy is slow to generate them, which is no
# fault of the code's.
settings.register_profile("same", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.register_profile("search", settings.get_profile("same"), derandomize=False)
settings.load_profile("same")

# Tests compare what programs say, have no settings of the user, and write what other users read.
os.environ["LC_ALL"] = "C.UTF-8"
for name in [*os.environ]:
    if name.startswith(("JOURNAL_STREAM", "LIBVIRT_", "NO_COLOR", "NOTIFY_SOCKET", "WATCHDOG_")):
        del os.environ[name]
os.umask(0o022)

# GNU readline, which pytest imports, tells every child of ours a width that no terminal has.
os.unsetenv("COLUMNS")

end_in_order()
