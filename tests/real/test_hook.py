"""The hook in a real libvirtd: guests live through everything with it in place, and each operation is acted upon.

A spy hook, which comes after ours in the alphabet, tells which operations libvirt really called hooks for. Listeners
and one-shots are stand-ins first (tests/lab/hook.py). Then a real agent and the real one-shot change KSM's settings:
each step of the law adds one page to pages_to_scan (STEPPING_LAW), so that the kernel itself counts the passes.
"""

import json
import os
import shlex
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import libvirt
import pytest

from tests.lab.churn import end_guests
from tests.lab.fixtures import QEMU_CACHE, GuestFactory, ready, tiny
from tests.lab.hang import HANG_S
from tests.lab.hook import Listener, install_hook, install_recorder, read_records
from tests.lab.ksm import Ksm, wait_until
from tests.lab.libvirtd import PrivateLibvirtd
from tests.real.agent_process import VIRTKSM, AgentFactory, AgentHome, AgentProcess

pytestmark = pytest.mark.real

STARTING = ["prepare begin", "start begin", "started begin"]
STOPPING = ["stopped end", "release end"]
LIFE = [*STARTING, *STOPPING, "restore begin", *STARTING, "reconnect begin", *STOPPING]
ACTED_UPON = ["started", "release", "restore", "started", "reconnect", "release"]
NOWHERE = Path("/nonexistent")


class HookedLibvirtd(PrivateLibvirtd):
    """A private libvirtd with the hook in it, and the spy."""

    def __init__(self) -> None:
        super().__init__(cache=QEMU_CACHE)
        self.hook = self.hooks_dir / "qemu.d" / "virtksm"
        self.hook.parent.mkdir()
        install_hook(self.hook, fifo=NOWHERE, virtksm=NOWHERE)
        self._operations = self.root / "operations"
        self._seen = 0
        spy = self.hook.with_name("zz-spy")
        spy.write_text(f'#!/bin/sh\nprintf "%s %s\\n" "$2" "$3" >>{shlex.quote(str(self._operations))}\n')
        spy.chmod(0o755)

    def operations(self) -> list[str]:
        """Read what hooks were called for since the last reading, "OPERATION SUBOPERATION" each."""
        if not self._operations.exists():
            return []
        all_of_them = self._operations.read_text(encoding="utf-8").splitlines()
        new, self._seen = all_of_them[self._seen :], len(all_of_them)
        return new

    def wait_called(self, last: str) -> list[str]:
        """Wait until libvirt has called hooks for `last`, which it does by itself."""
        came: list[str] = []

        def has_come() -> bool:
            came.extend(self.operations())
            return last in came

        wait_until(has_come, HANG_S, f"the hooks of {last!r}")
        return came

    def connected(self, do: Callable[[libvirt.virConnect], object]) -> None:
        connection = libvirt.open(self.uri)
        try:
            do(connection)
        finally:
            connection.close()


@contextmanager
def killed_when_hanging(daemon: PrivateLibvirtd) -> Iterator[None]:
    """Kill the daemon when a hook hangs it: libvirt's calls would never return, and cannot be interrupted."""
    guard = threading.Timer(0.9 * HANG_S, daemon.kill)
    guard.start()
    try:
        yield
    finally:
        guard.cancel()
        guard.join()


@pytest.fixture(scope="module")
def session_libvirtd() -> Iterator[HookedLibvirtd]:
    """Stand in for the session's libvirtd."""
    with HookedLibvirtd() as daemon:
        yield daemon


@pytest.fixture
def libvirtd(session_libvirtd: HookedLibvirtd) -> Iterator[HookedLibvirtd]:
    with killed_when_hanging(session_libvirtd):
        ready(session_libvirtd)
        session_libvirtd.operations()
        yield session_libvirtd
        install_hook(session_libvirtd.hook, fifo=NOWHERE, virtksm=NOWHERE)


def assert_lives(libvirtd: PrivateLibvirtd, name: str, pid: int) -> None:
    """See that libvirt has the guest running in this very process, and that it takes orders."""
    connection = libvirt.open(libvirtd.uri)
    try:
        domain = connection.lookupByName(name)
        assert domain.isActive() == 1
        domain.suspend()  # waits for its turn where libvirt still takes the guest back
        domain.resume()
        assert libvirtd.guest_pid(name) == pid
        os.kill(pid, 0)
    finally:
        connection.close()


@pytest.mark.parametrize("around", ["a listener", "virtksm alone"])
def test_a_guest_lives_through_everything(
    guest: GuestFactory, libvirtd: HookedLibvirtd, tmp_path: Path, around: str
) -> None:
    fifo, virtksm, saved = tmp_path / "poke", tmp_path / "virtksm", str(tmp_path / "saved")
    record, hold = tmp_path / "record", tmp_path / "hold"
    install_hook(libvirtd.hook, fifo=fifo, virtksm=virtksm)
    with ExitStack() as stack:
        listener = stack.enter_context(Listener(fifo)) if around == "a listener" else None
        if around == "virtksm alone":
            hold.touch()
            stack.callback(hold.unlink)
            install_recorder(virtksm, record=record, hold=hold)
        running = guest(tiny("guest"), settle=False)
        xml = ET.canonicalize(running.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        assert_lives(libvirtd, "guest", running.pid)

        def restore(connection: libvirt.virConnect) -> None:
            connection.restore(saved)
            stack.callback(end_guests, libvirtd)  # `guest` does not know its process
            restored = connection.lookupByName("guest").XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
            assert ET.canonicalize(restored) == xml

        running.domain.save(saved)
        libvirtd.connected(restore)
        pid = libvirtd.guest_pid("guest")
        assert_lives(libvirtd, "guest", pid)
        calls = libvirtd.operations()
        libvirtd.kill()
        libvirtd.start()
        calls += libvirtd.wait_called("reconnect begin")
        assert_lives(libvirtd, "guest", pid)

        def end(connection: libvirt.virConnect) -> None:
            connection.lookupByName("guest").destroy()
            assert connection.listAllDomains() == []

        libvirtd.connected(end)
        assert calls + libvirtd.operations() == LIFE
        assert listener is None or listener.read_pokes() == ACTED_UPON
        started = len(ACTED_UPON) if around == "virtksm alone" else 0
        wait_until(lambda: len(read_records(record)) >= started, HANG_S, f"{started} one-shots")
        assert len(read_records(record)) == started
        for one in read_records(record):
            os.kill(one.pid, 0)  # raises if it is over: it outlives hook and libvirtd
            assert one.arguments == ["retune", "--direct", "--coalesce"]
            assert not Path("/proc", one.environment["VIRTKSM_HOOK_PID"], "fd").exists(), "the hook still runs"
            inherited = [to for number, to in one.descriptors.items() if number > 2 and "/proc/" not in to]
            assert inherited == [], "libvirt or the hook let something through"


def test_a_guest_that_cannot_start_a_long_xml_and_a_hostile_name(
    guest: GuestFactory, libvirtd: HookedLibvirtd, libvirt_conn: libvirt.virConnect, payload: Path, tmp_path: Path
) -> None:
    install_hook(libvirtd.hook, fifo=tmp_path / "poke", virtksm=NOWHERE)
    with Listener(tmp_path / "poke") as listener:
        with pytest.raises(libvirt.libvirtError, match="not-there"):
            libvirt_conn.createXML(tiny("guest").domain_xml(tmp_path / "not-there", None))
        assert libvirtd.operations()[-1] == "release end"
        assert listener.read_pokes() == ["release"]
        # libvirt writes all of it to the hook's stdin, which the hook never reads: it does not fit into a pipe.
        domain = ET.fromstring(tiny("guest").domain_xml(payload, None))  # noqa: S314 - our own text
        ET.SubElement(domain, "description").text = "x" * 300_000
        libvirt_conn.createXML(ET.tostring(domain, encoding="unicode")).destroy()
        guest(tiny("-rf '; touch owned; ' $(touch owned)`touch owned`\n" + "x" * 150), settle=False).domain.destroy()
        assert listener.read_pokes() == ["started", "release"] * 2
    owned = [Path("/proc", str(libvirtd.pid), "cwd", "owned"), libvirtd.root / "owned"]
    assert [path for path in owned if path.exists()] == []


@pytest.mark.parametrize("operation", ["prepare", "started", "release"])
def test_no_pass_waits_for_a_guest_that_its_hook_keeps_from_starting_or_ending(
    libvirtd: HookedLibvirtd,
    start_agent: AgentFactory,
    guest: GuestFactory,
    request: pytest.FixtureRequest,
    operation: str,
) -> None:
    keep, kept = (libvirtd.root / f"{name}-{operation}" for name in ("keep", "kept"))
    keeper = libvirtd.hook.with_name("zz-keeper")
    keeper.write_text(
        f'#!/bin/sh\n[ "$2" = {operation} ] || exit 0\n'
        f"while [ -e {shlex.quote(str(keep))} ]; do touch {shlex.quote(str(kept))}; sleep 0.05; done\n"
    )
    keeper.chmod(0o755)
    request.addfinalizer(keeper.unlink)
    agent = start_agent()
    first = guest(tiny("first"), settle=False)
    agent.wait_for("pass_completed", lambda line: line["sensed"]["guests"] == 1)
    keep.touch()
    with ThreadPoolExecutor() as pool:
        try:
            ending = operation == "release"
            acting = pool.submit(first.domain.destroy if ending else partial(guest, tiny("second"), settle=False))
            wait_until(kept.exists, HANG_S, "the hook to be kept")
            for _ in range(2):
                agent.poke()
                by_the_last_list = agent.wait_for_pass("poke")
            assert by_the_last_list["sensed"]["guests"] == 1
            assert not acting.done()
        finally:
            keep.unlink()
        acting.result(HANG_S)
    agent.wait_for("pass_completed", lambda line: line["sensed"]["guests"] == (0 if ending else 2))
    assert agent.lines("pass_failed") == []


class OtherHost(HookedLibvirtd):
    """One that takes itself for another host (name and UUID), so that guests can be migrated to it."""

    def __init__(self) -> None:
        super().__init__()
        with self.conf.open("a", encoding="ascii") as conf:
            conf.write(f'host_uuid = "{uuid.uuid4()}"\n')
        self._reaper += ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', "elsewhere"]


def test_a_migrated_guest_pokes_on_both_hosts(guest: GuestFactory, libvirtd: HookedLibvirtd, tmp_path: Path) -> None:
    with OtherHost() as there, killed_when_hanging(there):
        for daemon, name in ((libvirtd, "here"), (there, "there")):
            install_hook(daemon.hook, fifo=tmp_path / name, virtksm=NOWHERE)
        guest(tiny("guest"))
        with Listener(tmp_path / "here") as source, Listener(tmp_path / "there") as destination:
            move = ["migrate", "--live", "guest", there.uri, "--migrateuri", "tcp://127.0.0.1"]
            subprocess.run(["virsh", "-c", libvirtd.uri, *move], check=True, capture_output=True, timeout=HANG_S)
            assert_lives(there, "guest", there.guest_pid("guest"))
            assert source.read_pokes() == ["release"]
            assert destination.read_pokes() == ["migrate", "started"]
        assert there.operations() == ["migrate begin", *STARTING]


class OneShots:
    """The real virtksm where the hook looks for it, and what the passes that it made say."""

    def __init__(self, libvirtd: HookedLibvirtd, home: AgentHome) -> None:
        self._libvirtd = libvirtd
        self._output = home.folder / "passes"
        program = home.folder / "virtksm"
        # The installed program needs no options; here it is told this test's place. A hook's virtksm prints for nobody.
        command = [VIRTKSM, "--config", str(home.config), "--runtime-dir", str(home.runtime_dir)]
        program.write_text(
            f"#!/bin/sh\nexport LIBVIRT_DEFAULT_URI={shlex.quote(libvirtd.uri)}\n"
            f'exec {shlex.join(command)} "$@" --json >>{shlex.quote(str(self._output))} 2>&1\n',
            encoding="utf-8",
        )
        program.chmod(0o755)
        install_hook(libvirtd.hook, fifo=home.poke_fifo, virtksm=program)

    def passes(self) -> list[Mapping[str, Any]]:
        """Read the passes so far; raises ValueError with whatever else a one-shot said."""
        if not self._output.exists():
            return []
        lines = self._output.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def wait_guests(self, count: int) -> None:
        """Wait until the last pass has seen so many guests, and no other is to come."""

        def seen() -> bool:
            passes = self.passes()
            return bool(passes) and passes[-1]["sensed"]["guests"] == count and not self.retuning()

        wait_until(seen, HANG_S, f"a pass that sees {count} guests")

    def retuning(self) -> bool:
        """Tell whether one-shots run that hooks have started: they live in libvirtd's mount namespace."""
        return any(b"--coalesce" in arguments_of(pid) for pid in self._libvirtd.processes())


def arguments_of(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:  # it ended meanwhile
        return []


@pytest.fixture
def one_shots(libvirtd: HookedLibvirtd, agent_home: AgentHome, ksm: Ksm) -> Iterator[OneShots]:  # noqa: ARG001
    """Install the hook with the real one-shot; wait for the last of them before KSM is given back."""
    lent = OneShots(libvirtd, agent_home)
    yield lent
    install_hook(libvirtd.hook, fifo=NOWHERE, virtksm=NOWHERE)
    wait_until(lambda: not lent.retuning(), HANG_S, "the one-shots to end")


def test_without_an_agent_each_change_is_a_pass_the_last_of_a_burst_sees_every_guest_and_libvirtd_may_die(
    ksm: Ksm, one_shots: OneShots, guest: GuestFactory, libvirtd: HookedLibvirtd
) -> None:
    assert ksm.read("pages_to_scan") == 100
    running = guest(tiny("one"), settle=False)
    one_shots.wait_guests(1)
    assert ksm.read("pages_to_scan") == 1
    libvirtd.kill()
    libvirtd.start()
    wait_until(lambda: len(one_shots.passes()) == 2, HANG_S, "the pass after the reconnect")
    one_shots.wait_guests(1)
    assert libvirtd.guest_pid("one") == running.pid
    libvirtd.connected(lambda connection: connection.lookupByName("one").destroy())
    one_shots.wait_guests(0)
    with pytest.raises(libvirt.libvirtError):
        running.domain.info()  # so that the factory notices that its connection has died with the daemon
    guest(tiny("first"), paused=True)
    with ThreadPoolExecutor(4) as together:
        list(together.map(lambda number: guest(tiny(f"burst{number}"), paused=True), range(5)))
    one_shots.wait_guests(6)
    made = one_shots.passes()
    assert [one["triggers"] for one in made] == [["retune"]] * len(made)
    assert ksm.read("pages_to_scan") == len(made)


def wait_heard(agent: AgentProcess, event: str, guests: int) -> None:
    """Wait for the passes that the hook's poke and libvirt's own event ask for, one or two: then no other is to come.

    The last has seen so many guests.
    """
    left = {"poke", event}
    while left:
        left -= set(agent.wait_for("pass_completed")["triggers"])

    def seen() -> bool:
        return bool(agent.lines("pass_completed")[-1]["sensed"]["guests"] == guests)

    wait_until(seen, HANG_S, f"a pass that sees {guests} guests")


def test_an_agent_hears_the_hook_and_after_its_death_one_shots_go_on_where_it_was_until_the_next_one(
    ksm: Ksm, one_shots: OneShots, start_agent: AgentFactory, guest: GuestFactory
) -> None:
    agent = start_agent()
    running = guest(tiny("one"), settle=False)
    wait_heard(agent, "started", 1)
    running.domain.destroy()
    wait_heard(agent, "stopped", 0)
    agent.kill()
    assert one_shots.passes() == []
    assert start_agent.home.poke_fifo.is_fifo()
    pages = ksm.read("pages_to_scan")
    guest(tiny("one"), settle=False)
    one_shots.wait_guests(1)
    assert ksm.read("pages_to_scan") == pages + 1
    agent = start_agent()
    guest(tiny("two"), settle=False)
    wait_heard(agent, "started", 2)
    assert not one_shots.retuning()
    assert len(one_shots.passes()) == 1
    assert agent.stop() == 0
    assert ksm.read("pages_to_scan") == 100
