"""The same claims as units.py's, on a host that has gone over from libvirtd to virtqemud."""

from collections.abc import Callable
from pathlib import Path

from tests.boot import units
from tests.boot.inside import CHECKOUT, claim, libvirt_daemon, libvirt_sockets, report, run, shown, wait

MODULAR = CHECKOUT / "build" / "modular"
IDLE_EXIT = """\
[Service]
Environment=VIRTQEMUD_ARGS="--timeout 5"
"""


def goes_over() -> None:
    """virtqemud takes libvirtd's place; without clients it ends, and its socket stays"""
    run("systemctl", "disable", "--now", *libvirt_sockets("libvirtd"), "libvirtd.service")
    run("systemctl", "mask", *libvirt_sockets("libvirtd"), "libvirtd.service")
    run("cp", "-a", f"{MODULAR}/.", "/")
    run("ldconfig")
    with Path("/etc/libvirt/qemu.conf").open("a", encoding="ascii") as conf:
        conf.write("cgroup_controllers = []\n")  # the container's are read-only
    drop_in = Path("/etc/systemd/system/virtqemud.service.d/idle-exit.conf")
    drop_in.parent.mkdir()
    drop_in.write_text(IDLE_EXIT, encoding="ascii")
    run("systemctl", "daemon-reload")
    run("systemctl", "enable", "--now", *libvirt_sockets("virtqemud"))
    claim(libvirt_daemon() == "virtqemud", libvirt_daemon())
    run("virsh", "list")
    wait(lambda: shown("virtqemud.service", "ActiveState") == "inactive", "virtqemud to end")
    claim(shown("virtqemud.socket", "ActiveState") == "active", "its socket is gone")


CLAIMS: tuple[Callable[[], None], ...] = (goes_over, *units.CLAIMS)

if __name__ == "__main__":
    raise SystemExit(report(CLAIMS, f"{MODULAR}/usr/sbin/virtqemud"))
