"""`virtksm retune`: one pass, through the agent if one serves this host, else directly.

The agent's way needs argparse, json and socket; only the direct way imports libvirt and psutil.
"""

from __future__ import annotations

import argparse
import gc
import os

from virtksm.errors import ExitCode, OnlyRoot, VirtksmError
from virtksm.paths import RuntimePaths
from virtksm.uri import named_uri

TYPE_CHECKING = False  # importing typing costs a one-shot through the agent 2 ms
if TYPE_CHECKING:
    from virtksm.cli.connection import Libvirt
    from virtksm.config.schema import Config
    from virtksm.host.libvirt_connection import LibvirtHost
    from virtksm.model.decision import Trigger

ANSWER_WITHIN_S = 60.0
HOOK_OVER_WITHIN_S = 30.0
"""How long `--coalesce` waits for the hook that started it; libvirt runs hooks while it holds the guest."""
COALESCE_S = 0.25


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--direct", action="store_true", help="do it here, also where an agent runs")
    parser.add_argument("--dry-run", action="store_true", help="sense and decide, write nothing")
    parser.add_argument(
        "--coalesce",
        action="store_true",
        help="wait for the calling qemu hook to end, and exit if another such command waits already",
    )


def run(options: argparse.Namespace) -> int:
    gc.disable()  # a process of a tenth of a second has no garbage worth its 4 ms
    if options.coalesce and not _wait_for_hook(options.paths):
        return ExitCode.DONE
    report = run_pass(options, direct=options.direct, dry_run=options.dry_run)
    from virtksm.cli.layout import print_result
    from virtksm.cli.render import pass_rows

    print_result(options, report, pass_rows(report))
    return ExitCode.REFUSED if report["refused"] else ExitCode.DONE


def run_pass(options: argparse.Namespace, *, direct: bool = False, dry_run: bool = False) -> dict[str, object]:
    request = {"op": "retune", "dry_run": dry_run}
    if not direct:
        report = through_agent(options.paths, named_uri(options.connect), request, within_s=ANSWER_WITHIN_S)
        if report is not None:
            return report
    from virtksm.cli.connection import Libvirt, requested_uri
    from virtksm.config.load import load
    from virtksm.model.decision import Trigger

    uri = requested_uri(options.connect, options.paths)
    config = load(options.config, asks_groups=False).config
    libvirt = Libvirt(uri, config.call_timeout_s)
    host = libvirt.open()
    if not direct and host.uri != uri:  # it was an alias: the agent may know the real one
        report = through_agent(options.paths, host.uri, request, within_s=ANSWER_WITHIN_S)
        if report is not None:
            return report
    return pass_over(libvirt, host, config, options.paths, Trigger.RETUNE, dry_run=dry_run)


def through_agent(
    paths: RuntimePaths, uri: str | None, request: dict[str, object], *, within_s: float
) -> dict[str, object] | None:
    """Return the pass that the agent ran for a request, None if no agent serves this URI.

    Without a URI it is the agent's own host. Raises VirtksmError with the agent's exit code if it
    could not do it, or if it does not answer.
    """
    from virtksm.agent.control_client import ask
    from virtksm.cli.answers import PASS_ASKED_FOR
    from virtksm.cli.ask_agent import no_answer, take_answer

    try:
        answer = ask(paths.control_socket, request if uri is None else {**request, "uri": uri}, timeout_s=within_s)
    except PermissionError as error:
        raise OnlyRoot from error
    except (OSError, ValueError) as error:
        raise no_answer(error, "systemctl status virtksm; --direct does without the agent") from error
    if answer is None or "other_uri" in answer:
        return None
    if not answer.get("ok"):
        failure = VirtksmError(str(answer.get("error")), remedy=str(answer.get("remedy", "")))
        code = answer.get("exit_code")
        if isinstance(code, int) and code in list(map(int, ExitCode)):
            failure.exit_code = ExitCode(code)
        raise failure
    return take_answer(answer, "pass", PASS_ASKED_FOR)


def pass_over(
    libvirt: Libvirt, host: LibvirtHost, config: Config, paths: RuntimePaths, trigger: Trigger, *, dry_run: bool = False
) -> dict[str, object]:
    """Run one pass over an open connection, and return it; raises VirtksmError."""
    from virtksm.model.decision import Triggers
    from virtksm.store.state import LOCK_WAIT_S
    from virtksm.wiring import make_cycle

    cycle, triggers = make_cycle(host, config, paths), Triggers(kinds=frozenset({trigger}))
    report = libvirt.run("pass", lambda: cycle.run(triggers, dry_run=dry_run), more_s=LOCK_WAIT_S)
    return report.as_dict(with_thresholds=True)


def _wait_for_hook(paths: RuntimePaths) -> bool:
    """Wait until the hook is over; return False if another one-shot is waiting and will see this guest too.

    The lock is released before the pass begins, so a later one-shot runs a pass of its own.
    """
    from virtksm.store.files import ensure_runtime, open_lock, try_lock

    os.closerange(3, 1024)  # a descriptor that the hook's parent left open must not keep it waiting
    ensure_runtime(paths)
    lock = open_lock(paths.coalesce_lock)
    try:
        if not try_lock(lock):
            return False
        _wait_for_process(os.environ.get("VIRTKSM_HOOK_PID", ""))
        return True
    finally:
        os.close(lock)


def _wait_for_process(pid: str) -> None:
    import select
    import time

    time.sleep(COALESCE_S)
    if not pid.isdecimal():
        return
    try:
        descriptor = os.pidfd_open(int(pid))
    except OSError:  # it is over already
        return
    try:
        select.select([descriptor], [], [], HOOK_OVER_WITHIN_S)
    finally:
        os.close(descriptor)
