"""Why a connection cannot be opened: what the real libvirt reports for each cause, and the remedy that follows."""

import socket
from pathlib import Path

import libvirt
import pytest

from tests.lab.libvirtd import PrivateLibvirtd
from tests.lab.nobody import run_as_nobody
from virtksm.errors import ExitCode, LibvirtRefuses, LibvirtUnreachable
from virtksm.host.libvirt_connection import explain_failure, open_host
from virtksm.host.systemd import libvirt_daemon

START = "systemctl start libvirtd.socket"
LET_IN = "run this with sudo, or as a member of the group libvirt"
ANOTHER = "name another URI, such as qemu:///system"

HERE = "qemu:///system"
REPORTED = [
    (HERE, libvirt.VIR_ERR_SYSTEM_ERROR, 2, "libvirt is not running", START),
    (HERE, libvirt.VIR_ERR_SYSTEM_ERROR, 111, "libvirt is not running", START),
    (HERE, libvirt.VIR_ERR_SYSTEM_ERROR, 13, "this user may not connect", LET_IN),
    (HERE, libvirt.VIR_ERR_AUTH_FAILED, -1, "this user may not connect", LET_IN),
    (HERE, libvirt.VIR_ERR_AUTH_UNAVAILABLE, -1, "this user may not connect", LET_IN),
    ("qemu+ssh://root@x/system", libvirt.VIR_ERR_SYSTEM_ERROR, 104, "the host cannot be reached", "ssh root@x "),
    ("qemu+ssh://[::1]:22/?x", libvirt.VIR_ERR_SYSTEM_ERROR, 104, "the host cannot be reached", "ssh -p 22 ::1 "),
    ("qemu+tcp://there/system", libvirt.VIR_ERR_SYSTEM_ERROR, 111, "the host cannot be reached", "on that host: "),
    ("qemu+tls://there/system", libvirt.VIR_ERR_AUTH_FAILED, -1, "this user may not connect", "on that host: "),
    ("qemu+ssh://x/system", libvirt.VIR_ERR_AUTH_UNAVAILABLE, -1, "this user may not connect", "log in as root"),
    ("lab", libvirt.VIR_ERR_NO_CONNECT, -1, "no such alias", "name a URI such as qemu:///system"),
    ("xen:///system", libvirt.VIR_ERR_NO_CONNECT, -1, "no such connection", ANOTHER),
    ("qemu:///sytem", libvirt.VIR_ERR_INTERNAL_ERROR, -1, "no such connection", ANOTHER),
    (HERE, libvirt.VIR_ERR_SYSTEM_ERROR, 24, "no connection", "journalctl -u libvirtd"),
]  # fmt: skip


@pytest.mark.parametrize(("uri", "code", "number", "cause", "remedy"), REPORTED)
def test_each_cause_has_its_remedy(uri: str, code: int, number: int, cause: str, remedy: str) -> None:
    found = explain_failure(uri, code, number, "", daemon="libvirtd")
    assert found[0] == cause
    assert found[1].startswith(remedy)


SSH_SAID = [
    (
        "Permission denied, please try again.\r\na@h: Permission denied (publickey,password).",
        "ssh-copy-id -p 33 a@h; for",
    ),
    ("Host key verification failed.", "ssh -p 33 a@h, once by hand"),
    ("nc: unix connect failed: Permission denied", "log in as root, or as a member of that host's group libvirt"),
    ("ssh: connect to host h port 33: Connection refused", "ssh -p 33 a@h virsh uri"),
]
"""OpenSSH 9.2 by libvirt 9.0, but the third, netcat's."""


@pytest.mark.parametrize(("said", "remedy"), SSH_SAID)
def test_what_ssh_says_has_its_remedy(said: str, remedy: str) -> None:
    message = f"Cannot recv data: {said}: Connection reset by peer"
    uri = "qemu+ssh://a@h:33/system"
    assert explain_failure(uri, libvirt.VIR_ERR_SYSTEM_ERROR, 104, message, daemon="libvirtd")[1].startswith(remedy)


@pytest.mark.parametrize("uri", [HERE, "qemu+ssh://a/system"])
@pytest.mark.parametrize(
    "said",
    [
        "Failed to start SASL negotiation: -4 (SASL(-4): no mechanism available)",
        "Failed to collect auth credentials",
        "authentication failed",
    ],
)
def test_a_libvirt_that_asks_for_a_password_is_told_as_such(uri: str, said: str) -> None:
    code = libvirt.VIR_ERR_AUTH_FAILED
    cause, remedy = explain_failure(uri, code, -1, f"authentication failed: {said}", daemon="libvirtd")
    assert cause.startswith("libvirt asks for a password")
    assert remedy.startswith("name and password in /etc/libvirt/auth.conf")


@pytest.fixture
def dead_socket(tmp_path: Path) -> str:
    """A socket that nobody listens to any more."""
    path = str(tmp_path / "dead")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
    return path


def opening(uri: str) -> LibvirtUnreachable:
    with pytest.raises(LibvirtUnreachable) as failed:
        open_host(uri)
    assert failed.value.message.startswith(f"{uri}: ")
    return failed.value


def test_a_daemon_that_is_not_there(dead_socket: str) -> None:
    for path in ("/nonexistent/socket", dead_socket):
        failed = opening(f"qemu:///system?socket={path}")
        assert f": libvirt is not running (Failed to connect socket to '{path}': " in failed.message
        assert failed.remedy == f"systemctl start {libvirt_daemon()}.socket"
        assert not isinstance(failed, LibvirtRefuses), "it may come"


def test_a_host_that_is_not_there() -> None:
    assert opening("qemu+ssh://root@127.0.0.1:1/system?no_tty=1").remedy == "ssh -p 1 root@127.0.0.1 virsh uri"
    assert opening("qemu+tcp://127.0.0.1:1/system").remedy.startswith("on that host: ")


@pytest.mark.parametrize("uri", ["no-such-alias", "qemu+bogus:///system", "://"])
def test_a_name_that_means_nothing(uri: str) -> None:
    assert opening(uri).remedy.startswith("name a")


@pytest.mark.real
def test_a_daemon_that_does_not_know_the_path_or_the_driver(libvirtd: PrivateLibvirtd) -> None:
    assert opening(f"qemu:///sytem?socket={libvirtd.socket_path}").remedy == ANOTHER
    # A modular daemon looks for the one of that driver, and says that this is not there.
    unknown = ANOTHER if libvirtd.name == "libvirtd" else f"systemctl start {libvirt_daemon()}.socket"
    assert opening(f"nonsense:///system?socket={libvirtd.socket_path}").remedy == unknown


@pytest.mark.real
def test_a_user_whom_the_daemons_socket_keeps_out(libvirtd: PrivateLibvirtd) -> None:
    done = run_as_nobody("--config", "/dev/null", "guests", "--connect", libvirtd.uri)
    error, hint = done.stderr.splitlines()
    assert error.startswith(f"virtksm: error: {libvirtd.uri}: this user may not connect (Failed to connect socket to ")
    assert hint == f"hint: {LET_IN}"
    assert done.returncode == ExitCode.UNREACHABLE
