"""A pytest plugin: deselects the tests that need what this kernel lacks (tests/lab/kernel.py).

tests/everything_ran.py lists them, and compares them with not_applicable.toml.
"""

from pathlib import Path

import pytest

from tests.lab.kernel import KERNEL, Kernel


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add this plugin's option."""
    parser.addoption("--kernel-root", default="/", type=Path, help="where the kernel's /proc and /sys are (tests)")


def pytest_configure(config: pytest.Config) -> None:
    """Read what the kernel offers."""
    config.stash[KERNEL] = Kernel(config.getoption("--kernel-root"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that do not apply."""
    kernel = config.stash[KERNEL]
    if deselected := [item for item in items if kernel.lacks(item)]:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if not kernel.lacks(item)]
