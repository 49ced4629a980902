"""`python -m demo`: shows the agent at work on a few throwaway guests, and prints the savings in the end.

Writes KSM's settings only through the agent, whose state is in the throwaway folder; `script/demo` switches KSM on
around it and gives everything back. It needs a checkout, where the guests' kernel is built.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from demo.embedded import embedded_libvirt
from demo.view import MIB, LiveView
from virtksm.cli.main import exit_code_of, run_program
from virtksm.cli.timespan import timespan
from virtksm.errors import VirtksmError
from virtksm.log_setup import configure
from virtksm.paths import RuntimePaths
from virtksm.store.files import try_lock
from virtksm.store.switch import SwitchFile

PROGRAM = "script/demo"
DESCRIPTION = "Show the agent at work on a few throwaway guests, and print the savings in the end."
PAYLOAD = Path(__file__).resolve().parents[1] / "build" / "payload.elf"
MERGED = 0.9
"""The share of what the guests have in common that must merge."""
KSM_RUN = Path("/sys/kernel/mm/ksm/run")


def main(arguments: Sequence[str] | None = None, *, host: RuntimePaths | None = None, ksm_run: Path = KSM_RUN) -> int:
    """Run the demonstration; exit code 0 only if events were heard, settings applied, and equal pages merged.

    `host` are the folders of an agent of this host, beside which there is no demonstration.
    """
    parser = argparse.ArgumentParser(prog=PROGRAM, description=DESCRIPTION, allow_abbrev=False)
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
    options = parser.parse_args(arguments)
    if not 2 <= options.guests <= 64:
        parser.error("--guests takes 2..64")
    if not options.payload.is_file():
        parser.error(f"{options.payload} is missing: script/demo builds it")
    return exit_code_of(lambda: _run(options, host or RuntimePaths(), ksm_run), PROGRAM)


def _run(options: argparse.Namespace, host: RuntimePaths, ksm_run: Path) -> int:
    if options.connect is None and (not ksm_run.exists() or ksm_run.read_text(encoding="ascii").strip() != "1"):
        raise VirtksmError("KSM is off or missing here", remedy="script/demo switches it on and off again around this")
    if SwitchFile(host.host_switch("local")).read() is not None:
        raise VirtksmError("virtksm is paused on this host", remedy="virtksm resume")
    if _is_held(host.agent_lock):
        raise VirtksmError(
            "an agent already tunes this host's KSM", remedy="stop it meanwhile: systemctl stop virtksm.service"
        )
    with embedded_libvirt(options.folder) as root:
        return _show(options, root.path, options.connect or root.uri)


def _show(options: argparse.Namespace, folder: Path, uri: str) -> int:
    from demo.story import COMMON, Story  # imports libvirt, which reads embedded_libvirt's environment then

    folder.chmod(0o755)  # guests may run as another user
    kernel = folder / "payload.elf"
    shutil.copyfile(options.payload, kernel)
    expected_bytes = int(MERGED * (options.guests - 1) * COMMON.common_mib * MIB)
    view = LiveView(stream=sys.stdout, page_bytes=os.sysconf("SC_PAGE_SIZE"), expected_bytes=expected_bytes)
    configure("info", "console", renderers=[view.render])
    story = Story(uri=uri, folder=folder, kernel=kernel, guests=options.guests, duration_s=options.duration, view=view)
    code = story.run()
    view.say("summary", view.summary())
    if not story.is_finished:
        raise KeyboardInterrupt
    missing = view.verdict()
    if missing:
        raise VirtksmError(f"the demonstration failed: {', '.join(missing)}", remedy="see the lines above")
    return code


def _is_held(lock: str) -> bool:
    """Return whether another process holds this lock; makes no file."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    run_program(main)
