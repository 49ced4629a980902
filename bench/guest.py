"""A running guest taken out of KSM and let back in: how long libvirt's call takes, and QEMU and the guest stand still.

A guest and its twin have all their content in common, so that all of it is merged, once with QEMU's huge pages and once
with small ones. While the guest is switched, a second monitor of its QEMU is asked for its status again and again: its
slowest answer tells how long QEMU's main loop was held. The guest itself writes twenty times a second; the longest time
in which its processor did nothing tells how long it stood still. Started by script/bench.
"""

import argparse
import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import libvirt

from bench.figures import tell_machine
from demo.guests import PayloadGuest, wait_settled
from tests.lab.fixtures import QEMU_CACHE, REPO
from tests.lab.ksm import Ksm, wait_until
from tests.lab.libvirtd import PrivateLibvirtd
from virtksm.host.libvirt_connection import LibvirtHost
from virtksm.host.libvirt_monitor import LibvirtMonitor
from virtksm.host.local_facts import read_mergeable_memory

NAMES = ("switched", "twin")
OWN_MIB = 8
REST_S = 1.0
LIMIT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Of one call: until it returned, the CPU time of QEMU's main loop, QEMU's slowest answer, and the longest rest of
    the guest's processor.
    """

    call_s: float
    cpu_s: float
    answer_s: float
    rest_s: float


class Watch:
    """Asks a guest's QEMU and looks at its processor, each in a thread of its own, until `stop`."""

    def __init__(self, monitor: Path, pid: int) -> None:
        self._over = threading.Event()
        self._longest = dict.fromkeys(("answer", "rest"), 0.0)
        self._monitor = socket.socket(socket.AF_UNIX)
        self._monitor.connect(str(monitor))
        self._lines = self._monitor.makefile("r")
        self._lines.readline()
        self._ask("qmp_capabilities")
        tasks = Path(f"/proc/{pid}/task")
        self._main_loop = tasks / str(pid)
        self._vcpu = next(task for task in tasks.iterdir() if (task / "comm").read_text().startswith("CPU 0"))
        self._threads = [threading.Thread(target=self._watch, args=one) for one in self._watches().items()]

    def _watches(self) -> dict[str, Callable[[], None]]:
        return {"answer": self._ask_status, "rest": self._wait_for_work}

    def _ask_status(self) -> None:
        self._ask("query-status")
        time.sleep(0.001)

    def _ask(self, command: str) -> None:
        self._monitor.sendall(json.dumps({"execute": command}).encode())
        while "return" not in json.loads(self._lines.readline()):  # an event
            pass

    def _wait_for_work(self) -> None:
        found_s = cpu_s(self._vcpu)
        while cpu_s(self._vcpu) == found_s and not self._over.is_set():
            time.sleep(0.001)

    def _watch(self, name: str, wait: Callable[[], None]) -> None:
        while not self._over.is_set():
            began_s = time.monotonic()
            wait()
            self._longest[name] = max(self._longest[name], time.monotonic() - began_s)

    def time(self, call: Callable[[], None]) -> Times:
        for thread in self._threads:
            thread.start()
        time.sleep(REST_S)
        self._longest = dict.fromkeys(self._longest, 0.0)
        began_s, used_s = time.monotonic(), cpu_s(self._main_loop)
        call()
        call_s, used_s = time.monotonic() - began_s, cpu_s(self._main_loop) - used_s
        time.sleep(REST_S)
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._monitor.close()
        return Times(call_s=call_s, cpu_s=used_s, answer_s=self._longest["answer"], rest_s=self._longest["rest"])


def cpu_s(task: Path) -> float:
    """Return the CPU time that a thread has used."""
    return int((task / "schedstat").read_text(encoding="ascii").split()[0]) / 1e9


def measure(daemon: PrivateLibvirtd, mib: int, ksm: Ksm) -> None:
    """Switch a guest with so much merged memory out and in, and print the times."""
    connection = libvirt.open(daemon.uri)
    monitors = {name: daemon.root / f"{name}-{mib}" for name in NAMES}
    domains = {}
    for seed, (name, socket_path) in enumerate(monitors.items()):
        spec = PayloadGuest(
            name=name, memory_mib=mib + 64, common_mib=mib, own_mib=OWN_MIB, seed=seed, rewrite_per_s=200
        )
        arguments = "".join(f"<q:arg value='{one}'/>" for one in ("-qmp", f"unix:{socket_path},server=on,wait=off"))
        console = daemon.root / f"console-{name}-{mib}"
        second = f"<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'>{arguments}</q:commandline>"
        xml = spec.domain_xml(REPO / "build" / "payload.elf", console).replace("</domain>", f"{second}</domain>")
        domains[name] = connection.createXML(xml)
        wait_settled(console, LIMIT_S)
    ksm.merge_all(LIMIT_S)
    uuid, pid = domains[NAMES[0]].UUIDString(), daemon.guest_pid(NAMES[0])
    monitor = LibvirtMonitor(LibvirtHost(connection))

    def merged_mib() -> float:
        memory = read_mergeable_memory(pid)
        return 0.0 if memory is None else (memory.merged_kib or 0) / 1024

    monitor.merging(uuid)
    for merge in (False, True):
        before_mib = merged_mib()
        times = Watch(monitors[NAMES[0]], pid).time(lambda to=merge: monitor.set_merging(uuid, merge=to))  # type: ignore[misc]
        print(
            f"  {mib:5} MiB, {'merge  ' if merge else 'unmerge'}: {before_mib:7.1f} MiB merged before, "
            f"{merged_mib():6.1f} after; call {times.call_s:.3f} s, of it {times.cpu_s:.3f} s CPU of QEMU's main loop, "
            f"its slowest answer {times.answer_s:.3f} s, longest rest of the guest's processor {times.rest_s:.3f} s",
            flush=True,
        )
    for domain in domains.values():
        domain.destroy()
    wait_until(lambda: connection.listAllDomains() == [], LIMIT_S, "the guests to end")
    connection.close()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="script/bench guest", description="Time virtksm guest unmerge and merge.")
    parser.add_argument("--sizes", default="512,1024,2048", help="MiB of merged memory (%(default)s)")
    sizes = [int(text) for text in parser.parse_args(arguments).sizes.split(",")]
    tell_machine()
    for huge_pages in (True, False):
        print(f"{'huge' if huge_pages else 'small'} pages:", flush=True)
        with PrivateLibvirtd(cache=QEMU_CACHE, huge_pages=huge_pages) as daemon:
            for mib in sizes:
                measure(daemon, mib, Ksm())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
