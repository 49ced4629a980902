"""systemd's notification protocol, against a socket of this test's own."""

import os
import resource
import socket
from pathlib import Path
from uuid import uuid4

import pytest

from tests.lab.hang import HANG_S
from virtksm.host.systemd import Notifier, libvirt_daemon, show_units


def test_it_sends_one_datagram_of_lines_and_no_value_smuggles_in_another(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    notifier.send(READY="1", STATUS="guest\nSTOPPING=1\r\nREADY=1\u2028X=1")
    assert manager.recv(1000).decode().splitlines() == ["READY=1", "STATUS=guest STOPPING=1 READY=1 X=1"]
    manager.close()
    notifier.send(WATCHDOG="1")  # a manager that has gone is no failure


def test_what_finds_no_descriptor_left_is_sent_with_the_next(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    try:
        assert not notifier.send(READY="1")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert notifier.send(WATCHDOG="1")
    assert manager.recv(1000).decode().splitlines() == ["READY=1", "WATCHDOG=1"]


def test_an_abstract_socket_is_reached() -> None:
    name = f"virtksm-{uuid4()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{name}")
        listening.settimeout(HANG_S)
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).send(READY="1")
        assert listening.recv(1000) == b"READY=1"


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": "/nonexistent/notify"}])
def test_without_a_manager_sending_is_nothing(environ: dict[str, str]) -> None:
    Notifier(environ).send(READY="1")


@pytest.mark.parametrize(
    ("environ", "interval_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "42"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "43"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_it_is_fed_twice_as_often_as_asked_if_we_are_meant(environ: dict[str, str], interval_s: float | None) -> None:
    assert Notifier({"NOTIFY_SOCKET": "/run/x", **environ}, pid=42).watchdog_interval_s == interval_s
    assert Notifier(environ, pid=42).watchdog_interval_s is None, "there is no socket"


@pytest.mark.parametrize(
    ("files", "daemon"),
    [
        ([], "libvirtd"),
        (["libvirtd.socket"], "libvirtd"),
        (["virtqemud.socket"], "virtqemud"),
        (["libvirtd.socket", "virtqemud.socket"], "libvirtd"),
        (["libvirtd.socket", "virtqemud.socket", "sockets.target.wants/virtqemud.socket"], "virtqemud"),
        (["libvirtd.socket is /dev/null", "libvirtd.socket", "virtqemud.socket"], "virtqemud"),
        (["libvirtd.socket is /gone", "virtqemud.socket"], "virtqemud"),
    ],
)
def test_the_modular_daemon_is_named_where_it_is_enabled_or_alone(
    tmp_path: Path, files: list[str], daemon: str
) -> None:
    etc, vendor = tmp_path / "etc", tmp_path / "vendor"
    for folder in (etc, vendor / "sockets.target.wants"):
        folder.mkdir(parents=True)
    for name in files:
        link, _, target = name.partition(" is ")
        if target:
            (etc / link).symlink_to(target)
        else:
            (vendor / name).write_text("[Socket]\n")
    assert libvirt_daemon([str(etc), str(vendor)]) == daemon


@pytest.mark.parametrize(
    ("script", "answer"),
    [
        ('echo "$@"', "show --value *.service\n"),
        ("exit 1", ""),
        ("printf 'a\\377'", "a\N{REPLACEMENT CHARACTER}"),
        ("read line <hangs", ""),
        (None, ""),
    ],
)
def test_a_systemctl_that_tells_nothing_within_its_time_or_is_missing_is_no_failure(
    tmp_path: Path, script: str | None, answer: str
) -> None:
    program = tmp_path / "systemctl"
    os.mkfifo(tmp_path / "hangs")
    if script is not None:
        program.write_text(f"#!/bin/sh\ncd {tmp_path}\n{script}\n")
        program.chmod(0o755)
    within_s = 0.1 if script is not None and "hangs" in script else 60.0
    assert show_units("--value", "*.service", within_s=within_s, program=str(program)) == answer
