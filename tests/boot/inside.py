"""What claims need inside a booted container: looking, acting, and a report of one line per claim.

Runs as root on the distribution's Python alone. A claim is a function whose docstring says what is claimed; it may
return a figure to be told. One that fails does not keep the next from being tried.
"""

import json
import os
import platform
import pwd
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from demo.guests import PayloadGuest
from tests.lab.hang import SLOWER

CHECKOUT = Path("/run/checkout")
REPORT = Path("/run/out/report")
KSM = Path("/sys/kernel/mm/ksm")
HOOK = Path("/etc/libvirt/hooks/qemu.d/virtksm")
PAYLOAD = Path("/var/lib/libvirt/boot/payload.elf")
BASELINE = {"pages_to_scan": 123, "sleep_millisecs": 45}
"""What the administrator had: no value of virtksm's or the kernel's."""
COMMON_MIB = 40
LIMIT_S = 60.0 * SLOWER
POLL_S = 0.05 * SLOWER
"""Looking again and again costs more on a machine that is slower."""
CONFIG = """\
log_level = "debug"
[adaptive]
engage = "always"
"""


Claims = Sequence[Callable[[], str | None]]


class NotSo(Exception):
    """A claim does not hold; says what was found instead."""


def run(*command: str, fails: bool = False, user: str = "") -> str:
    """Run a program and return what it printed; raises NotSo unless it succeeds (or `fails`, where that is claimed)."""
    identity = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"] if user else []
    done = subprocess.run(
        [*identity, *command],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=2 * LIMIT_S,
        cwd="/",
    )
    if (done.returncode != 0) != fails:
        raise NotSo(f"{' '.join(command)} {'ended well' if fails else f'ended with {done.returncode}'}: {done.stdout}")
    return done.stdout


def wait(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition; raises NotSo naming `what`."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise NotSo(f"waited {LIMIT_S:g} s in vain for {what}")
        time.sleep(POLL_S)


def claim(condition: object, otherwise: object) -> None:
    if not condition:
        raise NotSo(str(otherwise))


def ksm(name: str) -> int:
    return int((KSM / name).read_text(encoding="ascii"))


def settings() -> dict[str, int]:
    return {name: ksm(name) for name in BASELINE}


def shown(unit: str, name: str) -> str:
    return run("systemctl", "show", "--value", f"--property={name}", unit).strip()


def libvirt_daemon() -> str:
    """Return the name of libvirt's daemon for QEMU here."""
    return "virtqemud" if Path("/usr/sbin/virtqemud").exists() else "libvirtd"


def libvirt_sockets(daemon: str) -> list[str]:
    return [f"{daemon}.socket", f"{daemon}-ro.socket", f"{daemon}-admin.socket"]


def main_pid() -> int:
    return int(shown("virtksm.service", "MainPID"))


def log() -> str:
    """Return all that the unit's processes have logged: a line each, the event with its fields by name, the message."""
    entries = run("journalctl", "--boot", "--no-pager", "--output=json", "--unit=virtksm.service").splitlines()
    return "\n".join(map(_line, map(json.loads, entries)))


def _line(entry: dict[str, Any]) -> str:
    fields = sorted((name, value) for name, value in entry.items() if name.startswith("VIRTKSM_"))
    told = " ".join(f"{name.removeprefix('VIRTKSM_').lower()}={value}" for name, value in fields)
    return f"{entry.get('VIRTKSM_EVENT', '')} {told} {entry.get('MESSAGE')}"


def wait_logged(pattern: str, seen: str) -> None:
    """Wait for a line of the log behind what was `seen` of it."""
    wait(lambda: re.search(pattern, log()[len(seen) :]), f"{pattern!r} in the log")


def heard(trigger: str, guest: str) -> str:
    return f"event_received .*guest={guest} .*trigger={trigger} "


def retune() -> dict[str, Any]:
    """Have the agent run a pass, and return its report."""
    report: dict[str, Any] = json.loads(run("virtksm", "retune", "--json"))
    return report


def doctor(user: str = "") -> dict[str, str]:
    """Return the verdict of each of `virtksm doctor`'s checks, as this user gets it."""
    told = json.loads(run("/bin/sh", "-c", "virtksm doctor --json || true", user=user))
    return {finding["check"]: finding["verdict"] for finding in told["findings"]}


def complaints(found: dict[str, str]) -> dict[str, str]:
    """Return what of the verdicts is in the way."""
    merges_without_need = "huge_pages"  # as CONFIG has it
    return {check: it for check, it in found.items() if it in ("WARN", "FAIL") and check != merges_without_need}


def claim_verdict(check: str, verdict: str) -> None:
    found = doctor()[check]
    claim(found == verdict, f"doctor says {found} of {check}")


def claim_clean() -> None:
    """Claim that `virtksm doctor` finds nothing in the way, and that libvirt's daemon has seen the hook."""
    found = doctor()
    claim(not complaints(found), complaints(found))
    claim(found["hook_seen"] == "PASS", found["hook_seen"])


def is_idle() -> bool:
    return settings() == {"pages_to_scan": 0, "sleep_millisecs": 10000}


def guest_xml(name: str, *, node: int | None = None, rewrite: int = 0) -> str:
    """Write a guest's XML: its memory on this NUMA node, so many of its common pages rewritten a second."""
    path = Path(f"/run/{name}.xml")
    guest = PayloadGuest(name=name, memory_mib=64, common_mib=COMMON_MIB, rewrite_common_per_s=rewrite)
    bound = "" if node is None else f'<numatune><memory mode="strict" nodeset="{node}" /></numatune>'
    path.write_text(guest.domain_xml(PAYLOAD, None).replace("<os>", f"{bound}<os>"), encoding="utf-8")
    return str(path)


def start_guest(name: str, *, node: int | None = None, rewrite: int = 0) -> int:
    """Start a guest and return its process."""
    if not PAYLOAD.exists():
        PAYLOAD.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(CHECKOUT / "build" / "payload.elf", PAYLOAD)
    run("virsh", "create", guest_xml(name, node=node, rewrite=rewrite))
    return int(Path(f"/run/libvirt/qemu/{name}.pid").read_text(encoding="ascii"))


def has_merged(guests: int) -> bool:
    """Tell whether the common pages of so many guests are merged."""
    return ksm("pages_sharing") >= (guests - 1) * COMMON_MIB * 256


def merge_two() -> list[int]:
    """Start two guests, wait until their common pages are merged and ksmd idles; return their processes."""
    seen = log()
    pids = [start_guest(name) for name in ("boot1", "boot2")]
    wait_logged(heard("started", "boot2"), seen)
    wait(lambda: has_merged(2), "merged pages")
    wait(is_idle, "being idle again")
    return pids


def owner_of(pid: int) -> str:
    return pwd.getpwuid(Path(f"/proc/{pid}").stat().st_uid).pw_name


def here(*daemon: str) -> str:
    """Return what is here, as cells of the table in docs/tried.md: userland, kernel, libvirt and Python.

    `daemon` is the command of libvirt's, where it is not the installed one.
    """
    release = platform.freedesktop_os_release()
    program, *_, version = run(*(daemon or (libvirt_daemon(),)), "--version").split()
    name = f"{release['NAME'].removesuffix(' GNU/Linux')} {release['VERSION_ID']}"
    return f"{name} | {os.uname().release} | {Path(program).name} {version} | {platform.python_version()}"


def report(claims: Claims) -> int:
    """Say what is here, and try every claim; returns 1 if one does not hold."""
    with REPORT.open("a", encoding="utf-8", buffering=1) as lines:
        lines.write(f"here    {here()}\n")
        return try_claims(claims, lines.write)


def try_claims(claims: Claims, write: Callable[[str], object]) -> int:
    """Try every claim, and write a line for each, with its seconds; returns 1 if one does not hold."""
    failed = 0
    for one in claims:
        words, began_s = " ".join((one.__doc__ or "").split()), time.monotonic()
        try:
            said, verdict = one(), "ok"
        except (NotSo, OSError, ValueError, subprocess.SubprocessError) as error:
            failed += 1
            said, verdict = str(error), "FAILED"
        write(f"{verdict:6} {time.monotonic() - began_s:6.1f} s  {words}{f': {said}' if said else ''}\n")
    write(f"{len(claims) - failed} of {len(claims)} claims hold\n")
    return 1 if failed else 0
