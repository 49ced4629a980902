"""What the package promises on a stock kernel, claim by claim, in a full machine under software emulation.

The machine has AppArmor, systemd as its first process, and a KSM of its own. Guests are emulated in it, too.
"""

import os
import re
from pathlib import Path

from tests.boot.inside import (
    BASELINE,
    CHECKOUT,
    CONFIG,
    KSM,
    Claims,
    claim,
    claim_clean,
    has_merged,
    heard,
    is_idle,
    ksm,
    log,
    main_pid,
    merge_two,
    report,
    run,
    settings,
    shown,
    start_guest,
    wait,
    wait_logged,
)

[PACKAGE] = (CHECKOUT / "build" / "packages" / "deb").glob("virtksm_*.deb")
DROP_IN = Path("/etc/virtksm/conf.d/50-boot.toml")
MAX_FULL_SCANS = 12
"""Of three guests: two for each part in which a guest's memory comes, QEMU's start and the payload. 4 were measured on
6.1 and 7.2, 5 on 6.12, where an earlier law took 44."""


def installed() -> None:
    """the package installs, switches KSM on and starts the agent, which lets ksmd idle"""
    for name, value in {"run": 0, **BASELINE}.items():
        (KSM / name).write_text(str(value), encoding="ascii")
    DROP_IN.parent.mkdir(parents=True)
    DROP_IN.write_text(f"call_timeout_s = 300\n{CONFIG}", encoding="utf-8")  # slow, as all here
    run("virsh", "list")
    run("dpkg", "--install", str(PACKAGE))
    for unit in ("virtksm.service", "virtksm-ksm.service"):
        run("systemctl", "is-active", unit)
    claim(ksm("run") == 1, f"run is {ksm('run')}")
    claim(Path(f"/proc/{main_pid()}").owner() == "virtksm", "the agent runs as another user")
    wait(is_idle, "being idle")
    wait(lambda: " mg" in Path(f"/proc/{main_pid()}/smaps").read_text(encoding="ascii"), "its own zero pages may merge")


def confined() -> None:
    """AppArmor confines libvirt's daemon"""
    pid = shown("libvirtd.service", "MainPID")
    profile = Path(f"/proc/{pid}/attr/current").read_text(encoding="ascii")
    claim(profile.startswith("libvirtd (enforce)"), profile)


def tunes() -> None:
    """three guests start, their common pages are merged; then it idles"""
    merge_two()
    seen = log()
    start_guest("boot3")
    wait_logged(heard("started", "boot3"), seen)
    wait(lambda: has_merged(3), "merged pages of the third")
    wait(is_idle, "being idle")


def hears_the_hook() -> None:
    """the confined daemon runs the hook, and no pass has waited for a guest's start"""
    claim(re.search(r"pass_completed.*poke", log()), "no poke in the log")
    claim('apparmor="DENIED"' not in run("dmesg"), "AppArmor has denied something")
    claim("pass_failed" not in log(), "a pass has failed")


def diagnoses() -> None:
    """`virtksm doctor` finds nothing in the way"""
    claim_clean()


def scans_little() -> str:
    """no more full scans than four a guest, whether smart_scan skips old pages or not, and none goes on"""
    wait(is_idle, "being idle")
    took = ksm("full_scans")
    claim(took <= MAX_FULL_SCANS, took)
    return str(took)


def keeps_to_cpus() -> None:
    """a drop-in of `virtksm-ksm.service` keeps ksmd to a CPU; without it the unit puts back what it found"""
    drop_in = Path("/etc/systemd/system/virtksm-ksm.service.d/cpus.conf")
    pid = int(run("pgrep", "--parent", "2", "--exact", "ksmd"))
    found = os.sched_getaffinity(pid)
    claim(len(found) > 1, found)
    drop_in.parent.mkdir()
    drop_in.write_text(f"[Service]\nEnvironment=KSMD_CPUS={max(found)}\n", encoding="ascii")
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "virtksm-ksm.service")
    claim(os.sched_getaffinity(pid) == {max(found)}, os.sched_getaffinity(pid))
    drop_in.unlink()
    drop_in.parent.rmdir()
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "virtksm-ksm.service")
    claim(os.sched_getaffinity(pid) == found, os.sched_getaffinity(pid))


def stops() -> None:
    """`systemctl stop`: the baseline is back, and what is merged stays merged"""
    run("systemctl", "stop", "virtksm.service")
    claim(settings() == BASELINE, settings())
    claim(has_merged(2), ksm("pages_sharing"))


def purged() -> None:
    """the purge switches KSM off and leaves nothing"""
    run("dpkg", "--purge", "virtksm")
    claim(ksm("run") == 0, f"run is {ksm('run')}")
    left = [str(path) for path in map(Path, ("/etc/virtksm", "/run/virtksm", "/var/lib/virtksm")) if path.exists()]
    claim(not left, left)


CLAIMS: Claims = (installed, confined, tunes, hears_the_hook, diagnoses, scans_little, keeps_to_cpus, stops, purged)


if __name__ == "__main__":
    raise SystemExit(report(CLAIMS))
