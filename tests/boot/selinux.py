"""What the package promises where SELinux enforces Debian's reference policy, which knows nothing of virtksm.

That policy does not let libvirt start a guest: tests/boot/selinux.cil allows what libvirt and QEMU need.
"""

import shutil
from pathlib import Path

from tests.boot.inside import (
    CHECKOUT,
    HOOK,
    Claims,
    claim,
    claim_verdict,
    complaints,
    doctor,
    guest_xml,
    main_pid,
    report,
    run,
    shown,
    start_guest,
)
from tests.boot.machine import installed, purged, stops, tunes

ENFORCE = Path("/sys/fs/selinux/enforce")


def domain(pid: int | str) -> str:
    return Path(f"/proc/{pid}/attr/current").read_text(encoding="ascii").split(":")[2]


def denials() -> list[str]:
    """Return what SELinux denied that names virtksm.

    Not execmem: libvirt's libraries ask for it in each of its clients, virsh too, and go on without.
    """
    lines = run("journalctl", "--boot", "--no-pager", "--output=cat").splitlines()
    return [line for line in lines if "avc:  denied" in line and "virtksm" in line and "{ execmem }" not in line]


def leaves_the_hook_out() -> None:
    """SELinux enforces; the package installs and starts, without the hook"""
    claim(ENFORCE.read_text(encoding="ascii") == "1", "SELinux is permissive")
    installed()
    claim(not HOOK.exists(), f"{HOOK} is there")


def runs_in_domains() -> str:
    """the policy confines libvirt's daemon (virtd_t), and not the agent (initrc_t)"""
    found = f"{domain(shown('libvirtd.service', 'MainPID'))}, {domain(main_pid())}"
    claim(found == "virtd_t, initrc_t", found)
    return found


def diagnoses() -> None:
    """`virtksm doctor` finds nothing in the way"""
    found = doctor()
    claim(not complaints(found), complaints(found))


def denies_nothing() -> None:
    """SELinux has denied virtksm nothing"""
    claim(not denials(), denials())


def denies_the_hook() -> None:
    """a hook in its place stops guests, and `virtksm doctor` says so; labelled bin_t it does not"""
    for guest in ("boot1", "boot2", "boot3"):
        run("virsh", "destroy", guest)
    shutil.copy(CHECKOUT / "hooks" / "virtksm", HOOK)
    run("systemctl", "restart", "libvirtd.service")
    claim_verdict("hook_confinement", "FAIL")
    said = run("virsh", "create", guest_xml("boot4"), fails=True)
    claim("Hook script execution failed" in said, said)
    claim(any("{ execute }" in line for line in denials()), denials())
    run("chcon", "--type=bin_t", str(HOOK))
    claim_verdict("hook_confinement", "PASS")
    start_guest("boot4")


CLAIMS: Claims = (
    leaves_the_hook_out,
    runs_in_domains,
    tunes,
    diagnoses,
    stops,
    denies_nothing,
    denies_the_hook,
    purged,
)


if __name__ == "__main__":
    raise SystemExit(report(CLAIMS))
