"""`virtksm fleet ACTION`: one command on many hosts at once, each by its libvirt URI; one table or JSON, one exit code.

Each host is asked by `virtksm -c URI ACTION --json`, in a process of its own (processes.py). libvirt alone leads there:
neither /proc nor an agent of another machine is seen, and what that means is noted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from typing import Any

from virtksm.cli.fleet.hosts import FleetHost, find_hosts
from virtksm.cli.fleet.processes import Answer, ask_all
from virtksm.cli.fleet.table import report_items
from virtksm.cli.layout import print_result
from virtksm.cli.progress import Progress
from virtksm.cli.timespan import DAY_S, timespan, whole
from virtksm.errors import ExitCode, UsageError
from virtksm.uri import is_alias, is_local

JOBS, TIMEOUT_S = 32, 60.0
"""A host costs a few milliseconds of CPU, so that places are for those that hang (chosen)."""
MAX_JOBS = 256
"""A process takes three descriptors, of usually 1024."""
NEEDED = (
    "agent.control_client",
    "cli.answers",
    "cli.ask_agent",
    "cli.connection",
    "host.libvirt_connection",
    "host.systemd",
    "json_output",
    "store.state",
    "tuning.cycle",
    "wiring",
)
"""What the actions import, and ALSO_NEEDED one of them: imported once, before there are processes."""
ALSO_NEEDED = {"status": ("cli.status_alone", "cli.history"), "doctor": ("doctor.checks",)}
NEEDS_CONFIGURATION = ("retune", "resume")
NOTES = {
    "status": "of another machine libvirt tells neither KSM's switch nor ksmd's CPU time, nor whether an agent runs: "
    "ssh HOST virtksm status",
    "doctor": "most checks are another machine's own: ssh HOST sudo virtksm doctor",
    "retune": "an agent on another machine takes these settings for another program's; there: ssh HOST virtksm retune",
    "pause": "on another machine virtksm's own agent is not paused, and sets KSM again; there: ssh HOST virtksm pause",
    "resume": "on another machine virtksm's own agent stays paused, if it was; there: ssh HOST virtksm resume",
}
"""What is not known of another machine, or does not hold there."""
SAID = {"virtksm: error: ": "error", "hint: ": "remedy", "virtksm: warning: ": "warnings"}
"""What the lines begin with that a command writes to standard error."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hosts", metavar="FILE", help="ask the hosts of FILE: a URI or a host name a line")
    parser.add_argument("--inventory", metavar="FILE", help="ask the hosts of an Ansible inventory")
    parser.add_argument("--limit", metavar="GROUP", help="of the inventory only this group, or host")
    parser.add_argument(
        "--jobs",
        metavar="N",
        type=whole(MAX_JOBS),
        default=JOBS,
        help="ask so many hosts at once (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        metavar="TIME",
        type=timespan(1, DAY_S),
        default=TIMEOUT_S,
        help=f"give a host up after so long (default: {TIMEOUT_S:g} s)",
    )


def run(options: argparse.Namespace) -> int:
    """Ask all hosts, and print their answers; returns the highest of their exit codes, or that of a signal.

    Raises VirtksmError if the hosts cannot be found, and where none could be asked.
    """
    _, action = options.words
    hosts = find_hosts(options.connect or (), options.hosts, options.inventory, options.limit)
    if not hosts:
        raise UsageError("no hosts are named", remedy="-c URI (may be repeated), --hosts FILE or --inventory FILE")
    if options.limit is not None and options.inventory is None:
        raise UsageError("--limit is a part of an inventory", remedy="name it: --inventory FILE")
    if action in NEEDS_CONFIGURATION:
        from virtksm.config.load import load

        load(options.config, asks_groups=False)
    for module in (f"cli.{action}", *NEEDED, *ALSO_NEEDED.get(action, ())):
        import_module(f"virtksm.{module}")
    results: dict[FleetHost, dict[str, Any]] = {}
    with Progress(is_wanted=not options.json) as progress:

        def notice(answers: Mapping[FleetHost, Answer], asked: Sequence[FleetHost]) -> None:
            for host in answers.keys() - results.keys():
                results[host] = result_of(action, host, answers[host])
            progress.show(progress_text(results.values(), asked, len(hosts)))

        answers, ended_by = ask_all(
            hosts, lambda host: ask(action, host, options), jobs=options.jobs, limit_s=options.timeout, notice=notice
        )
    interrupted = Answer(exit_code=128 + ended_by, said="virtksm: error: interrupted")
    answered = [results.get(host) or result_of(action, host, answers.get(host, interrupted)) for host in hosts]
    code = interrupted.exit_code if ended_by else max(one["exit_code"] for one in answered)
    notes = [] if all(is_local(one.uri) and not is_alias(one.uri) for one in hosts) else [NOTES[action]]
    report = {"action": action, "exit_code": code, "hosts": answered, "notes": notes}
    print_result(options, report, report_items(report))
    return code


def ask(action: str, host: FleetHost, options: argparse.Namespace) -> int:
    """Run an action for one host, printing JSON; returns its exit code."""
    from virtksm.cli.main import exit_code_of, parse

    folders = ["--runtime-dir", options.runtime_dir, "--state-dir", options.state_dir]
    config = [] if options.config is None else ["--config", options.config]
    words = [action, "--json", "--connect", host.uri, *folders, *config]

    def run_one() -> int:
        one = parse(words)
        return int(one.run(one) or ExitCode.DONE)

    return exit_code_of(run_one, given=sys.argv[1:])


def progress_text(results: Collection[Mapping[str, Any]], asked: Sequence[FleetHost], total: int) -> str:
    failed = sum(one["exit_code"] != ExitCode.DONE for one in results)
    return f"{len(results)} of {total} done, {failed} failed; waiting for {', '.join(one.name for one in asked)}"


def result_of(action: str, host: FleetHost, answer: Answer) -> dict[str, Any]:
    """Return one host's result as JSON values. Pure."""
    said: dict[str, list[str]] = {name: [] for name in SAID.values()}
    for line in answer.said.splitlines():
        for start, name in SAID.items():
            if line.startswith(start):
                said[name].append(line.removeprefix(start).removeprefix(f"{host.uri}: "))
    values = json.loads(answer.printed) if answer.printed else None
    return {
        "host": host.name,
        "uri": host.uri,
        "exit_code": judge(action, answer.exit_code, values),
        "answer": values,
        "error": "; ".join(said["error"]) or None,
        "remedy": "; ".join(said["remedy"]) or None,
        "warnings": said["warnings"],
        "took_s": round(answer.took_s, 3),
    }


def judge(action: str, code: int, values: Mapping[str, Any] | None) -> int:
    """Return a host's exit code: whether an agent answers, by which `status` ends, is not known of another machine."""
    if action != "status" or values is None:
        return code
    return ExitCode.DONE if values["libvirt"]["answers"] else ExitCode.UNREACHABLE
