"""Real Linux guests for the race: Debian's cloud kernel, an initramfs of busybox, memory that is partly alike.

Common pages are a file of the initramfs, which every guest unpacks; own ones are random numbers that the guest draws
itself, into a tmpfs. The kernel's package is unpacked, never installed.
"""

import random
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from xml.etree import ElementTree as ET

from demo.guests import PayloadGuest
from tests.lab.fixtures import REPO

FOLDER = REPO / "build" / "linux-guest"
KERNEL = "vmlinuz"
INITRAMFS = "initramfs.cpio"
PACKAGE = "linux-image-cloud-amd64"
COMMON_MIB = 80
MIB = 1024 * 1024

# Options that the kernel does not know reach init's environment: own.
INIT = """\
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t tmpfs -o size=95% own /own
/bin/busybox dd if=/dev/urandom of=/own/pages bs=1M count=$own 2>/dev/null
echo "virtksm-guest: settled linux own=$own" >/dev/ttyS0
exec /bin/busybox sleep 1000000
"""


class LinuxGuestUnbuilt(Exception):
    """The kernel or the initramfs could not be made."""


class LinuxGuest(PayloadGuest):
    """A payload guest that is a Linux; of its content, `common_mib` is COMMON_MIB and `own_mib` is free."""

    def cmdline(self) -> str:
        """Write the kernel's command line."""
        return f"console=ttyS0 quiet panic=-1 own={self.own_mib}"

    def domain_xml(self, kernel: Path, console: Path | None) -> str:
        """Write the domain XML of a payload guest, with the initramfs that lies beside the kernel."""
        domain = ET.fromstring(super().domain_xml(kernel, console))  # noqa: S314 - our own
        boot = domain.find("os")
        assert boot is not None
        ET.SubElement(boot, "initrd").text = str(kernel.with_name(INITRAMFS))
        return ET.tostring(domain, encoding="unicode")


def build_linux_guest() -> Path:
    """Make kernel and initramfs unless they are there, and return the kernel's path; raises LinuxGuestUnbuilt."""
    kernel = FOLDER / KERNEL
    if not kernel.exists():
        new = FOLDER.with_name(FOLDER.name + ".new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        try:
            _build_initramfs(new / INITRAMFS)
            _unpack_kernel(new / KERNEL)
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", None) or error
            raise LinuxGuestUnbuilt(f"no Linux guest, leave the work out (--works): {said}") from error
        shutil.rmtree(FOLDER, ignore_errors=True)
        new.rename(FOLDER)
    return kernel


def _unpack_kernel(kernel: Path) -> None:
    found = re.search(r"Depends: (linux-image-\S+)", _run("apt-cache", "depends", PACKAGE))
    if found is None:
        raise LinuxGuestUnbuilt(f"apt knows no {PACKAGE}: run apt-get update")
    with tempfile.TemporaryDirectory(dir=kernel.parent) as name:
        # As this user, since apt's own may not reach the folder.
        _run("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", found[1], folder=Path(name))
        (package,) = Path(name).glob("*.deb")
        _run("dpkg", "-x", str(package), name)
        (unpacked,) = Path(name).glob("boot/vmlinuz-*")
        shutil.copy(unpacked, kernel)


def _build_initramfs(initramfs: Path) -> None:
    with tempfile.TemporaryDirectory(dir=initramfs.parent) as name:
        root = Path(name)
        for folder in ("bin", "dev", "own"):
            (root / folder).mkdir()
        busybox = shutil.which("busybox")
        if busybox is None:
            raise LinuxGuestUnbuilt("busybox-static is not installed: run script/setup")
        shutil.copy(busybox, root / "bin" / "busybox")
        (root / "init").write_text(INIT, encoding="ascii")
        (root / "init").chmod(0o755)
        # The same in every guest, and no two pages of it alike.
        (root / "common").write_bytes(random.Random(1).randbytes(COMMON_MIB * MIB))
        names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*"))).encode()
        packed = subprocess.run(
            ["cpio", "--quiet", "-o", "-H", "newc"], cwd=root, input=names, capture_output=True, check=True
        )
        initramfs.write_bytes(packed.stdout)


def _run(*command: str, folder: Path | None = None) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder).stdout
