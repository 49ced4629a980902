"""What all tests share: the laboratory's fixtures, and Hypothesis without deadlines (no test judges speed)."""

from __future__ import annotations

import os

from hypothesis import settings

pytest_plugins = ["tests.lab.fixtures", "tests.real.agent_process"]

settings.register_profile("here", deadline=None)
# In CI the same examples every time: a red run is one that can be had again.
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if "CI" in os.environ else "here")
