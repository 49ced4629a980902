"""`virtksm restore`: gives KSM's settings back from outside, for a unit's ExecStopPost or after an agent was killed."""

from __future__ import annotations

import argparse

from virtksm.errors import AlreadyRunning, ExitCode
from virtksm.runtime import RuntimePaths
from virtksm.uri import requested_uri


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.add_argument("--connect", "-c", metavar="URI", help="libvirt connection (default: as virsh, qemu:///system)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--defaults",
        action="store_true",
        help="give the kernel's own defaults instead of what was found, which ksmtuned or the like had left behind",
    )
    which.add_argument(
        "--on-exit",
        action="store_true",
        help="do what the configuration's on_exit says (restore, park or leave) instead of always restoring",
    )
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Restore the baseline where the settings are still ours; returns the exit code.

    Raises AlreadyRunning while an agent runs: it would only set them again.
    """
    from virtksm.adapters.files import ensure_runtime, locked
    from virtksm.adapters.libvirt_host import open_host
    from virtksm.assemble import make_cycle
    from virtksm.config.load import load
    from virtksm.model import KERNEL_DEFAULTS

    paths = RuntimePaths(options.runtime_dir, options.state_dir)
    config = load(options.config).config
    action = config.on_exit if options.on_exit else "restore"
    ensure_runtime(paths)
    running = AlreadyRunning(
        f"an agent runs with {paths.root}", remedy="stop it (systemctl stop virtksm): it restores by itself"
    )
    with locked(paths.agent_lock, running):
        if action == "leave":
            print("nothing to do: on_exit is leave")
            return ExitCode.DONE
        cycle = make_cycle(open_host(requested_uri(options.connect)), config, paths)
        defaults = KERNEL_DEFAULTS if options.defaults else None
        restored = cycle.park() if action == "park" else cycle.restore(defaults)
    record = restored.as_dict()
    if options.json:
        import json

        print(json.dumps(record))
    else:
        from virtksm.cli.render import restore_lines

        print("\n".join(restore_lines(record)))
    return restored.exit_code
