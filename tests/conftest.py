"""What all tests share: the laboratory's fixtures, and Hypothesis without deadlines (no test judges speed)."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.lab.fixtures", "tests.lab.lock_holder", "tests.real.agent_process"]

# A machine that is busy is slow to generate examples, which is no fault of the code's.
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# In CI the same examples every time: a red run is one that can be had again.
settings.register_profile("ci", settings.get_profile("here"), derandomize=True, print_blob=True)
settings.load_profile("ci" if "CI" in os.environ else "here")

# A script's background job ignores SIGINT, and so does all that it starts; some tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have one worker take all that needs KSM's lock, first, and keep a file's real tests together (script/test)."""
    for item in items:
        if "ksm" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("ksm"))
        elif item.get_closest_marker("real") and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.path.name))
    items.sort(key=lambda item: all(mark.args != ("ksm",) for mark in item.iter_markers("xdist_group")))
