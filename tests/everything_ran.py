"""A pytest plugin for runs of the whole suite (`-p tests.everything_ran`): one that left tests out has failed.

It turns the exit code to 1 when a test was skipped, deselected or expected to fail, or when no test marked `real` has
passed, and says which. Tests that do not apply to this kernel (tests/not_applicable.py) are listed instead; what a
kernel that is known lacks of what tests need must be as in tests/not_applicable.toml. It changes no test.
script/test runs the suite in two parts beside each other: `--part ksm` is all that holds KSM's lock, one test after the
other, `--part beside` is the rest; `--part kubernetes` is a run of its own. Each keeps its row for docs/tried.md.
"""

import tomllib
from collections import Counter

import pytest

from tests.boot.inside import here
from tests.lab.kernel import KERNEL, Kernel, needs_of
from tests.lab.libvirtd import daemon_under_test
from tests.tried import PROJECT, keep

pytest_plugins = ["tests.not_applicable"]
SUITE = ("ksm", "beside")
TABLE = "tests/not_applicable.toml"


class EverythingRan:
    """Watches one session: what was left out, and which tests marked `real` passed."""

    def __init__(self, part: str | None, kernel: Kernel, table: dict[str, list[str]]) -> None:
        self._part = part
        self._kernel = kernel
        self._table = table
        self._not_applicable: list[pytest.Item] = []
        self._left_out: list[str] = []
        self._real: set[str] = set()
        self._passed: set[str] = set()
        self._complaints: list[str] = []

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        self._not_applicable += [item for item in items if self._kernel.lacks(item)]
        self._left_out += [f"deselected: {item.nodeid}" for item in items if not self._kernel.lacks(item)]

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self._left_out += compare(items, self._kernel, self._table)
        if self._part in SUITE:
            items[:] = [item for item in items if holds_ksm(item) == (self._part == "ksm")]
        self._real = {item.nodeid for item in items if item.get_closest_marker("real")}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self._left_out.append(f"skipped: {report.nodeid}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # A test expected to fail is reported as skipped, or as passed, with the mark's reason in wasxfail.
        if hasattr(report, "wasxfail"):
            self._left_out.append(f"expected to fail: {report.nodeid}")
        elif report.skipped:
            self._left_out.append(f"skipped: {report.nodeid}")
        elif report.when == "call" and report.passed:
            self._passed.add(report.nodeid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self._complaints = list(self._left_out)
        if not self._real & self._passed:
            self._complaints.append("no test marked `real` passed")
        if self._complaints and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if self._part is not None and session.config.rootpath == PROJECT:  # no suite of a test's
            result = "passed" if session.exitstatus == pytest.ExitCode.OK else "FAILED"
            run, daemon = run_and_daemon(self._part)
            keep(run, here(*daemon), f"{len(self._passed)} tests, {result}")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._not_applicable:
            counts = Counter(name for item in self._not_applicable for name in self._kernel.lacks(item))
            listed = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
            count = f"{len(self._not_applicable)} test{'s' if len(self._not_applicable) > 1 else ''}"
            terminalreporter.line(f"not applicable on Linux {self._kernel.version}: {count}: {listed}")
        if self._complaints:
            terminalreporter.section("not everything ran", red=True)
            for complaint in self._complaints:
                terminalreporter.line(complaint)


def run_and_daemon(part: str) -> tuple[str, list[str]]:
    """Return the arguments of script/test that this part is a run of, and the command of the daemon under test."""
    daemon = daemon_under_test()
    command = ["env", *(f"{name}={value}" for name, value in daemon.environment.items()), daemon.program]
    if part not in SUITE:
        return part, command
    return f"({part})" if daemon.name == "libvirtd" else f"modular ({part})", command


def compare(items: list[pytest.Item], kernel: Kernel, table: dict[str, list[str]]) -> list[str]:
    """Return how what this kernel lacks of what tests need differs from the table, if that knows it."""
    needed = {name for item in items for name in needs_of(item)}
    known = table.get(kernel.version)
    if known is None or needed & set(known) == needed - kernel.offers:
        return []
    return [f"{TABLE}: Linux {kernel.version} lacks {known}, and here {sorted(needed - kernel.offers)}"]


def holds_ksm(item: pytest.Item) -> bool:
    """Tell whether a test holds KSM's lock: by the fixture, or by what it runs, which its mark says."""
    return "ksm" in getattr(item, "fixturenames", ()) or item.get_closest_marker("ksm") is not None


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add this plugin's option."""
    words = "only tests that hold KSM's lock, or only the others; of script/test kubernetes all"
    parser.addoption("--part", choices=[*SUITE, "kubernetes"], help=words)


def pytest_configure(config: pytest.Config) -> None:
    """Register the watcher; one for each session."""
    path = config.rootpath / TABLE
    table = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    watcher = EverythingRan(config.getoption("--part"), config.stash[KERNEL], table)
    config.pluginmanager.register(watcher, "everything-ran")
