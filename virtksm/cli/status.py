"""`virtksm status`: what the agent knows, at once, also while libvirt does not answer.

Asks the agent and nobody else. Root and the agent's own user ask at the control socket; the members of the
configuration's `status_group` at the status socket.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from virtksm.cli.asking import OF_ONE_VERSION, ask_agent, find_answer
from virtksm.errors import ExitCode, VirtksmError
from virtksm.printable import printable
from virtksm.runtime import RuntimePaths

TYPE_CHECKING = False  # importing typing costs a one-shot through the agent 2 ms
if TYPE_CHECKING:
    from typing import Any


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.add_argument("--json", action="store_true", help="print what the agent knows as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the agent's status; returns the exit code.

    Raises VirtksmError if there is no agent, if it does not answer, or if this user may not ask.
    """
    status = _ask(RuntimePaths(options.runtime_dir))
    if options.json:
        import json

        print(json.dumps(status))
    else:
        print("\n".join(status_lines(status)))
    return ExitCode.DONE


def _ask(paths: RuntimePaths) -> dict[str, Any]:
    answer = ask_agent(paths, {"op": "status"})
    if answer is None:
        raise VirtksmError(f"no agent runs with {paths.root}", remedy="start it: systemctl start virtksm")
    status = find_answer(answer, "status")
    if not isinstance(status, dict):
        raise VirtksmError("the agent's status cannot be understood", remedy=OF_ONE_VERSION)
    return status


def status_lines(status: Mapping[str, Any]) -> list[str]:
    """Render the agent's answer."""
    lines = [
        f"agent     {status['uri']}, policy {status['policy']}, virtksm {status['version']}",
        f"libvirt   {_libvirt_text(status['libvirt'])}",
        f"last pass {_last_text(status)}",
        f"next pass {_next_text(status['next_pass_s'])}",
        f"stranded  {_stranded_text(status['stranded'])}",
    ]
    return [printable(line) for line in lines]


def _libvirt_text(libvirt: Mapping[str, Any]) -> str:
    why = f" ({libvirt['error']})" if libvirt["error"] else ""
    if libvirt["answers"]:
        return f"answers{why}"
    return (
        f"not answering since {libvirt['silent_since']} ({libvirt['silent_s']:.0f} s), "
        f"waiting for: {libvirt['waiting_for']}{why}"
    )


def _last_text(status: Mapping[str, Any]) -> str:
    last = status["last_pass"]
    if last is None:
        return "none yet"
    after = ", ".join(f"{name} {value}" for name, value in last["after"].items() if value is not None)
    return (
        f"{status['last_pass_ago_s']:.1f} s ago, for {', '.join(last['triggers'])}: {last['outcome']}, {after}; "
        f"{last['decision']['reason']}"
    )


def _next_text(next_pass_s: float | None) -> str:
    return "none planned" if next_pass_s is None else f"in {next_pass_s:.1f} s"


def _stranded_text(stranded: Mapping[str, Any]) -> str:
    if stranded["possible"] is None:
        return "unknown: no pass yet, and libvirt does not answer"
    if not stranded["possible"]:
        return "no"
    if stranded["settings"] is None:
        return "possibly: the first pass has not come back; only libvirt can slow ksmd down"
    return (
        f"possibly: only libvirt can slow ksmd down; with {stranded['settings']['pages_to_scan']} pages every "
        f"{stranded['settings']['sleep_millisecs']} ms, known last, it takes {stranded['worst_core_percent']:.1f} % "
        "of a core at worst"
    )
