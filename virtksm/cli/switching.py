"""The common part of `virtksm pause` and `resume`: sets a host's switch, and has a pass run, by the agent or here.

The switch is set first, here: neither an agent, nor libvirt, nor a pass that holds the host's lock, nor a configuration
with faults keeps root from it. Every wait has a limit, and every failure is reported.
"""

from __future__ import annotations

import argparse

from virtksm.cli.connection import Libvirt, config_or_defaults, requested_uri, warn
from virtksm.cli.retune import through_agent
from virtksm.errors import STOP_KSMD, ExitCode, OnlyRoot, VirtksmError
from virtksm.paths import RuntimePaths
from virtksm.uri import is_alias, named_uri

TYPE_CHECKING = False  # importing typing costs a one-shot through the agent 2 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Show = Callable[[dict[str, Any]], str]

SLACK_S = 5.0
"""An agent's time for its answer beyond a pass."""
MAX_SHOWN = 300
"""Characters of an agent's message."""
DONE = {"pause": "paused", "resume": "resumed"}


def add_switch_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of both commands."""
    parser.add_argument("--direct", action="store_true", help="do it here, also where an agent runs")


def switch(options: argparse.Namespace, op: str, show: Show) -> ExitCode:
    """Set the switch by `op` ("pause" or "resume"), have a pass run and print it by `show`; returns the exit code.

    Raises VirtksmError, which says whether the switch was set.
    """
    return Switching(options, op, show).run()


class Switching:
    """One such command at work."""

    def __init__(self, options: argparse.Namespace, op: str, show: Show) -> None:
        self._options, self._op, self._show = options, op, show
        self._paths = RuntimePaths(options.runtime_dir, options.state_dir)
        self._config, self._has_faults = config_or_defaults(options.config)
        self._named = named_uri(options.connect)
        self._uri = requested_uri(options.connect)
        self._done = f"not {DONE[op]}"

    def run(self) -> ExitCode:
        """Do all of it; raises as `switch`."""
        try:
            if not is_alias(self._uri):
                self._set_switch(self._uri)
            shown = None if self._options.direct else self._through_agent(self._named)
            text, code = shown or self._directly()
        except OnlyRoot:
            raise
        except VirtksmError as error:
            error.message = f"{self._done}: {error.message}"
            if self._op == "pause" and self._is_local:
                _warn_if_scanning()
            raise
        print(text)
        return code

    def _set_switch(self, uri: str) -> None:
        from virtksm.host.bounded import BoundedCalls
        from virtksm.wiring import make_switch

        own = make_switch(uri, self._config, self._paths)
        if not own.may_turn():
            raise OnlyRoot
        change = own.turn_off if self._op == "pause" else own.turn_on
        try:
            BoundedCalls(VirtksmError).run(f"writing {own.path}", change, self._config.call_timeout_s)
        except VirtksmError as error:
            if (own.read() is None) is not (self._op == "resume"):
                raise
            warn(f"{error}; virtksm counts as {DONE[self._op]} all the same")  # such as a folder in its place
        self._done = f"{DONE[self._op]}, but no pass was possible yet"

    def _through_agent(self, uri: str | None) -> tuple[str, ExitCode] | None:
        """Have the agent do it; None if none serves this host, or if it could not, which is a warning."""
        try:
            report = through_agent(self._paths, uri, {"op": self._op}, within_s=self._config.call_timeout_s + SLACK_S)
            if report is None:
                return None
            if uri is not None or self._is_here(report):
                return self._shown(report)
            trouble = f"serves {report['uri']}, which it has {DONE[self._op]}"
        except VirtksmError as error:
            trouble = f"could not do it: {error.message}"
        warn(f"the agent {trouble[:MAX_SHOWN]}; this is done without it")
        return None

    def _is_here(self, report: dict[str, Any]) -> bool:
        """Return whether an agent's pass was on the host that is meant here; its name for the host is only compared."""
        from virtksm.paths import host_key

        there = host_key(report["uri"], local=report["source"] == "local")
        return is_alias(self._uri) or there == host_key(self._uri, local=self._is_local)

    @property
    def _is_local(self) -> bool:
        from virtksm.wiring import is_this_machine

        return not is_alias(self._uri) and is_this_machine(self._uri, self._config)

    def _directly(self) -> tuple[str, ExitCode]:
        from virtksm.model.decision import Trigger, Triggers
        from virtksm.store.state import LOCK_WAIT_S
        from virtksm.wiring import make_cycle

        if self._op == "resume" and self._has_faults:
            refused = VirtksmError("the configuration has faults", remedy="virtksm config check")
            refused.exit_code = ExitCode.USAGE
            raise refused
        libvirt = Libvirt(self._config.call_timeout_s)
        host = libvirt.open(self._uri)
        if host.uri != self._uri:  # it was an alias, or written in another way
            shown = None if self._options.direct or self._named is None else self._through_agent(host.uri)
            if shown is not None:
                return shown
            self._set_switch(host.uri)
        triggers = Triggers(kinds=frozenset({Trigger(self._op)}))
        try:
            cycle = make_cycle(host, self._config, self._paths)
            report = libvirt.run("pass", lambda: cycle.run(triggers), more_s=LOCK_WAIT_S).as_dict(with_thresholds=True)
        except VirtksmError:
            raise
        except Exception as error:  # a fault of the program, which must not hide that the switch is set
            raise VirtksmError(f"{type(error).__name__}: {error}", remedy="report this fault of virtksm") from error
        return self._shown(report)

    def _shown(self, report: dict[str, Any]) -> tuple[str, ExitCode]:
        return self._show(report), ExitCode.REFUSED if report["refused"] else ExitCode.DONE


def _warn_if_scanning() -> None:
    """Warn where this machine's ksmd scans all the same, with the command that stops it without libvirt and virtksm."""
    from virtksm.host.clock import boottime_s
    from virtksm.host.local_facts import ProcFacts

    kernel = ProcFacts(boottime_s)
    scans = kernel.ksm_counter("pages_to_scan") != 0 or kernel.advisor_mode() not in (None, "none")
    if kernel.ksm_counter("run") == 1 and scans:
        warn(
            f"ksmd goes on scanning on this machine until a pass is possible; to stop it at once, as root: {STOP_KSMD}"
        )
