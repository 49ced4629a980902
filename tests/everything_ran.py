"""A pytest plugin for runs of the whole suite (`-p tests.everything_ran`): one that left tests out has failed.

It turns the exit code to 1 when a test was skipped, deselected or expected to fail, or when no test marked `real` has
passed, and says which. It changes no test, and says nothing about a run that it accepts. script/test runs the suite in
two parts beside each other: `--part ksm` is all that holds KSM's lock, one test after the other, `--part beside` is the
rest.
"""

from __future__ import annotations

import pytest


class EverythingRan:
    """Watches one session: what was left out, and which tests marked `real` passed."""

    def __init__(self, part: str | None) -> None:
        self._part = part
        self._left_out: list[str] = []
        self._real: set[str] = set()
        self._passed: set[str] = set()
        self._complaints: list[str] = []

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        self._left_out += [f"deselected: {item.nodeid}" for item in items]

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self._part is not None:
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

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._complaints:
            terminalreporter.section("not everything ran", red=True)
            for complaint in self._complaints:
                terminalreporter.line(complaint)


def holds_ksm(item: pytest.Item) -> bool:
    """Tell whether a test holds KSM's lock: by the fixture, or by what it runs, which its mark says."""
    return "ksm" in getattr(item, "fixturenames", ()) or item.get_closest_marker("ksm") is not None


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add this plugin's option."""
    parser.addoption("--part", choices=["ksm", "beside"], help="only tests that hold KSM's lock, or only the others")


def pytest_configure(config: pytest.Config) -> None:
    """Register the watcher; one for each session."""
    config.pluginmanager.register(EverythingRan(config.getoption("--part")), "everything-ran")
