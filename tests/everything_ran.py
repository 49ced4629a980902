"""A pytest plugin for runs of the whole suite (`-p tests.everything_ran`): one that left tests out has failed.

It turns the exit code to 1 when a test was skipped, deselected or expected to fail, or when no test marked `real` has
passed, and says which, also with pytest-xdist's workers. It changes no test, and says nothing about a run that it
accepts.
"""

from __future__ import annotations

from typing import Any

import pytest

LEFT_OUT = "tests_left_out"


class EverythingRan:
    """Watches one session: what was left out, and whether a test marked `real` passed."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._left_out: list[str] = []
        self._real_passed = False
        self._complaints: list[str] = []

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        self._left_out += [f"deselected: {item.nodeid}" for item in items]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self._left_out.append(f"skipped: {report.nodeid}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # A test expected to fail is reported as skipped, or as passed, with the mark's reason in wasxfail.
        if hasattr(report, "wasxfail"):
            self._left_out.append(f"expected to fail: {report.nodeid}")
        elif report.skipped:
            self._left_out.append(f"skipped: {report.nodeid}")
        elif report.when == "call" and report.passed and "real" in report.keywords:
            self._real_passed = True

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:  # noqa: ANN401  (pytest-xdist has no types for it)
        """Take what a worker tells at its end: of deselected tests it sends no report."""
        self._left_out += getattr(node, "workeroutput", {}).get(LEFT_OUT, [])

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(self._config, "workeroutput"):
            self._config.workeroutput[LEFT_OUT] = [one for one in self._left_out if one.startswith("deselected")]
            return
        self._complaints = sorted(set(self._left_out))
        if not self._real_passed:
            self._complaints.append("no test marked `real` passed")
        if self._complaints and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._complaints:
            terminalreporter.section("not everything ran", red=True)
            for complaint in self._complaints:
                terminalreporter.line(complaint)


def pytest_configure(config: pytest.Config) -> None:
    """Register the watcher; one for each session."""
    config.pluginmanager.register(EverythingRan(config), "everything-ran")
