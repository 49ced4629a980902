"""`virtksm restore`: gives KSM's settings back from outside, for a unit's ExecStopPost or after an agent was killed."""

from __future__ import annotations

import argparse

from virtksm.cli.connection import Libvirt, config_or_defaults, requested_uri
from virtksm.cli.layout import print_result
from virtksm.cli.render import restore_rows
from virtksm.errors import AlreadyRunning, ExitCode

LEAVE_WITHIN_S = 10.0
"""A call's limit with --on-exit, where a shutdown waits, which ends the restored settings anyway."""


def add_options(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--defaults",
        action="store_true",
        help="give the kernel's own defaults instead of the values found, which ksmtuned or the like had left behind",
    )
    which.add_argument(
        "--on-exit",
        action="store_true",
        help="do what the configuration's on_exit says (restore, idle or leave) instead of always restoring",
    )


def run(options: argparse.Namespace) -> int:
    """Restore the baseline where the settings are still ours; returns the exit code.

    Raises AlreadyRunning while an agent runs: it would only set them again. An agent that starts meanwhile would
    end at its lock, so the lock is not held while a connection is waited for.
    """
    from virtksm.model.snapshot import KERNEL_DEFAULTS
    from virtksm.store.files import ensure_runtime, locked
    from virtksm.store.state import LOCK_WAIT_S
    from virtksm.wiring import make_cycle

    paths = options.paths
    config, _ = config_or_defaults(options.config)
    action = config.on_exit if options.on_exit else "restore"
    ensure_runtime(paths)
    running = AlreadyRunning(
        "an agent runs, which restores the settings itself when it ends", remedy="systemctl stop virtksm"
    )
    with locked(paths.agent_lock, running):
        pass
    if config.only_observes or action == "leave":
        why = "on_exit is leave"
        if config.only_observes:
            why = "policy observe sets nothing (what an earlier one has set: virtksm --config /dev/null restore)"
        print_result(options, {"action": "leave"}, [("", f"nothing to do: {why}", "")])
        return ExitCode.DONE
    limit_s = min(config.call_timeout_s, LEAVE_WITHIN_S) if options.on_exit else config.call_timeout_s
    libvirt = Libvirt(requested_uri(options.connect), limit_s)
    cycle = make_cycle(libvirt.open(), config, paths)
    baseline = KERNEL_DEFAULTS if options.defaults else None
    with locked(paths.agent_lock, running):
        restored = libvirt.run(
            action, lambda: cycle.idle() if action == "idle" else cycle.restore(baseline), more_s=LOCK_WAIT_S
        )
    report = restored.as_dict()
    print_result(options, {"action": action, **report}, restore_rows(report))
    return restored.exit_code
