"""`virtksm pause` and `virtksm resume`: set a host's switch, and have a pass run, by the agent or here.

The switch is set first, here: neither an agent, nor libvirt, nor a pass that holds the host's lock, nor a configuration
with faults keeps root from it. Every wait has a limit, and every failure is reported. After `resume` the pass begins
with a new policy state.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from virtksm.cli.connection import Libvirt, config_or_defaults, requested_uri, warn
from virtksm.cli.layout import print_result
from virtksm.cli.render import pass_rows
from virtksm.cli.retune import pass_over, through_agent
from virtksm.errors import STOP_KSMD, ExitCode, OnlyRoot, VirtksmError
from virtksm.host.bounded import BoundedCalls
from virtksm.model.decision import Trigger
from virtksm.paths import host_key
from virtksm.uri import is_alias, named_uri
from virtksm.wiring import is_this_machine, key_of, make_switch

SLACK_S = 5.0
"""An agent's time for its answer beyond a pass."""
MAX_SHOWN = 300
"""Characters of an agent's message."""
DONE = {"pause": "paused", "resume": "resumed"}
ELSEWHERE = "an agent on that host has a switch of its own: run `virtksm pause` there, too"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--direct", action="store_true", help="do it here, also where an agent runs")


def run(options: argparse.Namespace) -> ExitCode:
    """Set the switch, have a pass run and print it; returns the exit code.

    Raises VirtksmError, which says whether the switch was set.
    """
    return Switching(options).run()


class Switching:
    """One such command at work."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options, self._op = options, options.words[0]
        self._paths = options.paths
        self._config, self._has_faults = config_or_defaults(options.config)
        self._named = named_uri(options.connect)
        self._uri = requested_uri(options.connect)
        self._done = f"not {DONE[self._op]}"

    def run(self) -> ExitCode:
        try:
            if not is_alias(self._uri):
                self._set_switch(self._uri)
            report = None if self._options.direct else self._through_agent(self._named)
            report = report or self._directly()
        except OnlyRoot:
            raise
        except VirtksmError as error:
            error.message = f"{self._done}: {error.message}"
            if self._op == "pause" and not is_alias(self._uri) and is_this_machine(self._uri, self._config):
                _warn_if_scanning()
            raise
        self._show(report)
        return ExitCode.REFUSED if report["refused"] else ExitCode.DONE

    def _set_switch(self, uri: str) -> None:
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

    def _through_agent(self, uri: str | None) -> dict[str, Any] | None:
        """Return the agent's pass; None if no agent serves this host, or if it could not, which is a warning."""
        try:
            report = through_agent(self._paths, uri, {"op": self._op}, within_s=self._config.call_timeout_s + SLACK_S)
            if report is None:
                return None
            there = host_key(str(report["uri"]), local=report["source"] == "local")  # a name that is only compared
            if uri is not None or is_alias(self._uri) or there == key_of(self._uri, self._config):
                return report
            trouble = f"serves {report['uri']}, which it has {DONE[self._op]}"
        except VirtksmError as error:
            trouble = f"could not do it: {error.message}"
        warn(f"the agent {trouble[:MAX_SHOWN]}; this is done without it")
        return None

    def _directly(self) -> dict[str, Any]:
        if self._op == "resume" and self._has_faults:
            refused = VirtksmError("the configuration has faults", remedy="virtksm config check")
            refused.exit_code = ExitCode.USAGE
            raise refused
        libvirt = Libvirt(self._uri, self._config.call_timeout_s)
        host = libvirt.open()
        if host.uri != self._uri:  # it was an alias, or written in another way
            report = None if self._options.direct or self._named is None else self._through_agent(host.uri)
            if report is not None:
                return report
            self._set_switch(host.uri)
        try:
            return pass_over(libvirt, host, self._config, self._paths, Trigger(self._op))
        except VirtksmError:
            raise
        except Exception as error:  # a fault of the program, which must not hide that the switch is set
            raise VirtksmError(f"{type(error).__name__}: {error}", remedy="report this fault of virtksm") from error

    def _show(self, report: Mapping[str, Any]) -> None:
        if self._op == "resume":
            values = {"paused": False, "pass": report}
            print_result(self._options, values, [("", "Resumed", "virtksm tunes KSM again"), *pass_rows(report)])
            return
        from virtksm.cli.unmerge import merged_dict, merged_rows
        from virtksm.model.snapshot import KsmState

        sensed, is_here = report["sensed"], report["source"] == "local"
        ksm = KsmState.counted(sensed.__getitem__, sensed["page_kib"])
        available_kib = sensed["free_kib"] if sensed["available_kib"] is None else sensed["available_kib"]
        values = {"paused": True, "merged": merged_dict(ksm, available_kib), "pass": report}
        rows = [
            ("", "Paused", "virtksm will not scan until `virtksm resume`"),
            *pass_rows(report),
            *([] if is_here else [("", "Note", ELSEWHERE)]),
            *merged_rows(ksm, available_kib, is_local=is_here),
        ]
        print_result(self._options, values, rows)


def _warn_if_scanning() -> None:
    """Warn where this machine's ksmd scans all the same, with the command that stops it without libvirt and virtksm."""
    from virtksm.host.local_facts import ProcFacts

    kernel = ProcFacts()
    scans = kernel.ksm_counter("pages_to_scan") != 0 or kernel.advisor_mode() not in (None, "none")
    if kernel.ksm_counter("run") == 1 and scans:
        warn(
            f"ksmd goes on scanning on this machine until a pass is possible; to stop it at once, as root: {STOP_KSMD}"
        )
