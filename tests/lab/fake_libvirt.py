"""A connection of libvirt-python that answers from values: what LibvirtHost asks of it, and nothing else."""

# ruff: noqa: N802  # the names of libvirt-python
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import libvirt


@dataclass
class FakeDomain:
    """A running guest; `asked` counts how often it was asked for its maximum, `measured` its measurements."""

    uuid: str
    called: str
    max_kib: Any
    asked: int = 0
    measured: int = 0
    connection: Any = None
    """The one over which it was looked up last."""

    def name(self) -> str:
        return self.called

    def UUIDString(self) -> str:
        return self.uuid

    def ID(self) -> int:
        return 1

    def connect(self) -> "FakeConnection":
        connection: FakeConnection = self.connection
        return connection

    def startDirtyRateCalc(self, _seconds: int) -> int:
        self.measured += 1
        return 0

    def maxMemory(self) -> Any:  # noqa: ANN401  # libvirt may answer anything
        self.asked += 1
        return self.max_kib


@dataclass
class FakeConnection:
    """A connection to a host with these guests, whose numbers are `answered`; `takes` what is set, or ignores it."""

    domains: list[FakeDomain]
    answered: dict[str, Any] = field(default_factory=dict)
    takes: bool = True
    listing_fails: bool = False
    is_alive: bool = True
    kept_alive: tuple[int, int] | None = None
    before_lookup: Callable[[], object] = lambda: None
    before_list: Callable[[], object] = lambda: None
    lookups: int = 0
    asked_for: list[int] = field(default_factory=list)
    """The kinds of statistics that were asked for."""

    def getURI(self) -> str:
        return "qemu:///system"

    def isAlive(self) -> int:
        return int(self.is_alive)

    def setKeepAlive(self, interval_s: int, count: int) -> int:
        self.kept_alive = interval_s, count
        return 0

    def close(self) -> int:
        self.is_alive = False
        return 0

    def getMemoryParameters(self) -> dict[str, Any]:
        return self.answered

    def getInfo(self) -> list[Any]:
        return ["x86_64", 1024, self.answered.get("cpus"), 0, 1, 1, 1, 1]

    def getMemoryStats(self, _cells: int) -> dict[str, Any]:
        return self.answered

    def setMemoryParameters(self, values: dict[str, int]) -> int:
        if self.takes:
            self.answered |= values
        return 0

    def lookupByUUIDString(self, uuid: str) -> FakeDomain:
        self.before_lookup()
        self.lookups += 1
        domain = next(domain for domain in self.domains if domain.uuid == uuid)
        domain.connection = self
        return domain

    def listAllDomains(self, _flags: int) -> list[FakeDomain]:
        self.before_list()
        if self.listing_fails:
            error: Any = libvirt.libvirtError("not now")
            error.err = None  # else it has the number of the last error that libvirt met in this thread
            raise error
        return list(self.domains)

    def getAllDomainStats(self, _stats: int, _flags: int) -> list[tuple[FakeDomain, dict[str, Any]]]:
        self.before_list()
        return [(domain, self.answered) for domain in self.domains]

    def domainListGetStats(
        self, domains: list[FakeDomain], stats: int, _flags: int
    ) -> list[tuple[FakeDomain, dict[str, Any]]]:
        self.asked_for.append(stats)
        return [(domain, self.answered) for domain in domains]
