"""`virtksm demo`: shows the agent at work on a few throwaway guests, and says in the end what it saved.

Writes no KSM setting but through the agent, and keeps what that keeps in the throwaway folder; `script/demo` switches
KSM on around it and gives everything back. It needs a checkout, where the guests' kernel is built.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from virtksm.cli.timespan import timespan
from virtksm.errors import ExitCode, VirtksmError
from virtksm.paths import RuntimePaths

PAYLOAD = Path(__file__).resolve().parents[2] / "build" / "payload.elf"
KSM_RUN = Path("/sys/kernel/mm/ksm/run")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.add_argument("--connect", "-c", metavar="URI", help="run the guests here (default: a throwaway libvirt)")
    parser.add_argument("--guests", type=int, default=4, metavar="N", help="how many, 2..64 (default: %(default)s)")
    parser.add_argument(
        "--duration",
        type=timespan(20, 3600),
        default=60.0,
        metavar="TIME",
        help="about how long (default: %(default)g s)",
    )
    parser.add_argument("--payload", type=Path, default=PAYLOAD, metavar="FILE", help="the guests' kernel")
    parser.add_argument("--folder", type=Path, default=Path("/tmp"), metavar="DIR", help="for throwaway files")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the demonstration; exit code 0 only if events were heard, settings applied and pages merged."""
    if not 2 <= options.guests <= 64:
        raise _usage("--guests takes 2..64")
    if not options.payload.is_file():
        raise _usage(
            f"{options.payload} is missing: the demonstration runs from a checkout, by script/demo, which builds it"
        )
    if options.connect is None and (not KSM_RUN.exists() or KSM_RUN.read_text(encoding="ascii").strip() != "1"):
        raise VirtksmError("KSM is off or missing here", remedy="script/demo switches it on and off again around this")

    from virtksm.demo.embedded import embedded_libvirt
    from virtksm.store.switch import SwitchFile

    paths = RuntimePaths(options.runtime_dir, options.state_dir)
    if SwitchFile(paths.host_switch("local")).read() is not None:
        raise VirtksmError("virtksm is switched off on this host", remedy="a demonstration merges: `virtksm on` first")
    if _is_held(paths.agent_lock):
        raise VirtksmError(
            "an agent already tunes this host's KSM", remedy="stop it meanwhile: systemctl stop virtksm.service"
        )

    with embedded_libvirt(options.folder) as root:  # before anything imports libvirt
        return _tell(options, root.path, options.connect or root.uri)


def _tell(options: argparse.Namespace, folder: Path, uri: str) -> int:
    import os
    import shutil
    import sys

    from virtksm.demo.story import Story
    from virtksm.demo.view import LiveView
    from virtksm.log_setup import configure

    folder.chmod(0o755)  # guests may run as another user
    kernel = folder / "payload.elf"
    shutil.copyfile(options.payload, kernel)
    view = LiveView(stream=sys.stdout, page_bytes=os.sysconf("SC_PAGE_SIZE"))
    configure("info", "console", renderers=[view.render])
    story = Story(uri=uri, folder=folder, kernel=kernel, guests=options.guests, duration_s=options.duration, view=view)
    code = story.tell()
    view.say("summary", view.summary())
    if not story.was_told:
        raise KeyboardInterrupt
    missing = view.verdict()
    if missing:
        raise VirtksmError(f"the demonstration failed: {', '.join(missing)}", remedy="see the lines above")
    return code


def _is_held(lock: str) -> bool:
    """Tell whether somebody holds this lock; makes no file."""
    import os

    from virtksm.store.files import try_lock

    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)


def _usage(message: str) -> VirtksmError:
    error = VirtksmError(message)
    error.exit_code = ExitCode.USAGE
    return error
