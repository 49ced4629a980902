"""One libvirt connection as the Hypervisor port: opens it, reads and sets node memory parameters, lists guests.

This is the only module through which settings reach the kernel: virNodeSetMemoryParameters, which `virsh
node-memory-tune` calls too. libvirt's errors become those of `virtksm.errors` here; `Any` ends here.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial

import libvirt

from virtksm.errors import (
    USE_QEMU,
    Cause,
    GuestVanished,
    LibvirtRefuses,
    LibvirtTimeout,
    LibvirtUnreachable,
    SensingFailed,
    SettingsRefused,
    Unsupported,
    VirtksmError,
)
from virtksm.host.bounded import BoundedCalls, Waiting
from virtksm.host.systemd import libvirt_daemon, libvirt_hangs
from virtksm.model.snapshot import LIBVIRT_COUNTERS, MAXIMA, PARAMETERS, Guest, HostMemory, KsmState, Settings
from virtksm.uri import address, at_host, is_alias, is_local, without_questions
from virtksm.values import replace

MAX_CPUS = 2**20
"""More than any kernel has: a larger number is no count."""
LIST_S = 1.0
LIST_GUEST_S = 0.01
"""How long a list may take before the last one is taken instead (chosen): with 500 guests it takes 20 ms, and 2-5 ms a
guest more with their memory (measured), for which LIST_GUEST_S is allowed."""


def keep_alive(connection: libvirt.virConnect, every_s: int) -> None:
    """Have a connection that is silent for so long tested, and closed after as long again without an answer.

    After one message, as its transport loses none. Drivers without a daemon refuse it, and need none.
    """
    try:
        connection.setKeepAlive(every_s, 1)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
            raise


class Connections:
    """The connection of passes, and those apart from it, of which each call beside passes has one to itself.

    libvirt's lists lock each guest for a moment, and a guest that starts or ends stays locked, through its hooks, too:
    no pass waits for that. A host that has lost its power answers nothing and closes nothing: `keepalive_s` has the
    connections given up then. Of several calls that are out over one, libvirt 9.0 fails one alone and leaves the others
    for ever, and with five out libvirtd reads no more of it (max_client_requests; both measured).
    """

    def __init__(self, passes: libvirt.virConnect, open_apart: Callable[[], libvirt.virConnect] | None) -> None:
        self._passes, self._uri = passes, passes.getURI()
        self._open_apart = open_apart
        self._spare: libvirt.virConnect | None = None
        """One apart that is open and not in use."""
        self.keepalive_s: int | None = None
        """Of those apart; None where their daemon cannot go without its sockets being closed."""
        self._lock = threading.Lock()
        self._users = 0
        """Calls beside passes, as long as they have not returned."""
        self._close: Callable[[], None] | None = None

    @contextmanager
    def apart(self) -> Iterator[libvirt.virConnect]:
        """Lend a connection, which is not closed meanwhile; raises LibvirtUnreachable once all are to be."""
        with self._lock:
            if self._close is not None:
                raise LibvirtUnreachable(f"the connection to {self._uri} is closed")
            self._users += 1
            lent, self._spare = self._spare, None
        try:
            if self._open_apart is None:
                lent = self._passes
            elif lent is None or not lent.isAlive():
                lent = None
                lent = self._open_apart()
                if self.keepalive_s is not None:
                    keep_alive(lent, self.keepalive_s)
            yield lent
        finally:
            self._take_back(lent)

    def _take_back(self, lent: libvirt.virConnect | None) -> None:
        with self._lock:
            self._users -= 1
            close = None if self._users else self._close
            if self._spare is None and lent is not self._passes:
                self._spare, lent = lent, None
        if lent is not None and lent is not self._passes:
            _close_apart(lent)
        if close is not None:
            close()

    def are_alive(self, apart: libvirt.virConnect | None) -> bool:
        """Return whether the connection of passes lives, and this one apart from it."""
        try:
            return all(one.isAlive() for one in (self._passes, apart) if one is not None)
        except libvirt.libvirtError:
            return False

    def close(self, close: Callable[[], None]) -> None:
        """Have the connection of passes closed by `close`, and the others, now or once none is used any more.

        libvirt frees a connection that is closed (virConnectClose), although a call of another thread still uses it.
        """

        def close_all() -> None:
            close()
            if self._spare is not None:
                _close_apart(self._spare)

        with self._lock:
            self._close = close_all
            is_used = self._users > 0
        if not is_used:
            close_all()


def _close_apart(connection: libvirt.virConnect) -> None:
    with suppress(libvirt.libvirtError):  # a dead one
        connection.close()


class LibvirtHost:
    """The Hypervisor port over one open connection; a call takes at most `call_timeout_s`, by default the key's."""

    def __init__(
        self, connection: libvirt.virConnect, open_apart: Callable[[], libvirt.virConnect] | None = None
    ) -> None:
        self.connection = connection
        self.uri = connection.getURI()
        self.connections = Connections(connection, open_apart)
        self.call_timeout_s = 30.0
        self.list_s = LIST_S
        self.came_late: Callable[[], object] = lambda: None
        """Called, in another thread, when a list has come that was not waited for, and passes have gone without it."""
        self._lists = BoundedCalls(partial(libvirt_hangs, uri=self.uri))  # not of self: what is freed late, closes late
        self._last_list: tuple[Guest, ...] | None = None
        self._is_list_old = False
        """Whether a pass has gone without the list that is waited for and may be for what that is too old to show."""
        self._cpus: int | None = None
        self._max_kib: dict[str, int | None] = {}
        self.stale: set[str | None] = set()
        """The guests whose maximum is to be asked again; None means all of them."""

    def ksm_state(self) -> KsmState:
        with self._translating("reading KSM's parameters"):
            values = self.connection.getMemoryParameters()
        settings = Settings(**{name: _counter(values, f"shm_{name}", MAXIMA[name]) for name in PARAMETERS})
        return replace(KsmState(settings), **{name: _counter(values, f"shm_{name}") for name in LIBVIRT_COUNTERS})

    def host_memory(self) -> HostMemory:
        with self._translating("reading the host's memory"):
            return parse_memory_stats(self.connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS))

    def cpus(self) -> int | None:
        if self._cpus is None:
            with self._translating("counting the host's CPUs"):
                self._cpus = _counter({"cpus": self.connection.getInfo()[2]}, "cpus", MAX_CPUS) or None
        return self._cpus

    def running_guests(self, *, with_max: bool) -> tuple[Guest, ...]:
        return self._list(partial(self._running_guests, with_max=with_max), self.list_s)

    @property
    def late_list(self) -> Waiting | None:
        """The list that is waited for and that passes go without."""
        return self._lists.waiting

    def _list(self, ask: Callable[[], tuple[Guest, ...]], late_s: float) -> tuple[Guest, ...]:
        """Return what `ask` does, or what it did last once it takes longer than `late_s`; raises LibvirtTimeout.

        Where lists always take longer, each is late, and must not ask for a pass: only one that shows other guests
        does, or one that may be too old.
        """
        before = self._last_list

        def keep() -> tuple[Guest, ...]:
            self._last_list = found = ask()
            return found

        def late(error: BaseException | None) -> None:
            last, is_old, self._is_list_old = self._last_list, self._is_list_old, False
            if error is not None:
                self._last_list = None  # the next pass waits, and meets the error
            if error is not None or is_old or _runs(last or ()) != _runs(before or ()):
                self.came_late()

        if self.late_list is not None:
            self._is_list_old = True
        try:
            limit_s = self.call_timeout_s if before is None else late_s
            return self._lists.run("a list of the guests", keep, limit_s, late=late)
        except LibvirtTimeout as error:
            waiting = self.late_list
            hangs = waiting is not None and time.monotonic() - waiting.since_s >= self.call_timeout_s
            last = self._last_list
            if last is None or hangs:
                raise libvirt_hangs(
                    f"listing the guests: no answer within {self.call_timeout_s:g} s", self.uri
                ) from error
            return last

    def _running_guests(self, *, with_max: bool) -> tuple[Guest, ...]:
        with self._apart("listing the guests") as apart:
            domains = apart.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
            guests = [Guest(uuid=one.UUIDString(), name=one.name(), domain_id=one.ID()) for one in domains]
            self.stale &= {None, *(guest.uuid for guest in guests)}  # or names of ended guests would pile up
            if not with_max:
                return tuple(guests)
            stale = frozenset(self.stale)
            self.stale -= stale  # before asking: a guest that is added meanwhile is for the next list
            known = {} if None in stale else self._max_kib
            self._max_kib = {
                guest.key: known[guest.key] if guest.key in known and guest.uuid not in stale else _read_max_kib(domain)
                for guest, domain in zip(guests, domains, strict=True)
            }
            return tuple(replace(guest, max_kib=self._max_kib[guest.key]) for guest in guests)

    def forget_max(self, uuid: str | None = None) -> None:
        self.stale.add(uuid)

    def measured_guests(self) -> tuple[Guest, ...]:
        return self._list(self._measured_guests, self.list_s + LIST_GUEST_S * len(self._last_list or ()))

    def _measured_guests(self) -> tuple[Guest, ...]:
        with self._apart("reading the guests' memory") as apart:
            stats = apart.getAllDomainStats(
                libvirt.VIR_DOMAIN_STATS_BALLOON,
                libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT,
            )
            return tuple(
                Guest(
                    uuid=domain.UUIDString(),
                    name=domain.name(),
                    domain_id=domain.ID(),
                    rss_kib=_counter(values, "balloon.rss"),
                    max_kib=_counter(values, "balloon.maximum"),
                )
                for domain, values in stats
            )

    def guest_xml(self, uuid: str) -> str:
        with self.guest(uuid, "reading a guest's XML") as domain:
            return domain.XMLDesc()

    def taints(self, uuid: str) -> tuple[str, ...] | None:
        with self.guest(uuid, "reading a guest's messages") as domain:
            try:
                messages = domain.messages(libvirt.VIR_DOMAIN_MESSAGE_TAINTING)
                return tuple(one.removeprefix("tainted: ") for one in messages)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
                    raise
                return None

    def start_dirty_rate(self, uuid: str, seconds: int) -> None:
        with self.guest(uuid, "measuring a guest's dirty rate") as domain:
            try:
                domain.startDirtyRateCalc(seconds)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_ACCESS_DENIED:
                    raise
                raise LibvirtRefuses(f"{error.get_error_message()} on {self.uri}") from error

    def changes(self, uuid: str, *, is_measured: bool) -> tuple[int | None, int | None]:
        kinds = libvirt.VIR_DOMAIN_STATS_BLOCK
        if is_measured:  # which asks QEMU once more
            kinds |= libvirt.VIR_DOMAIN_STATS_DIRTYRATE
        flags = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT  # without those for which its monitor is busy
        with self.guest(uuid, "reading a guest's statistics") as domain:
            stats = domain.connect().domainListGetStats([domain], kinds, flags)
        values = stats[0][1] if stats else {}
        is_over = values.get("dirtyrate.calc_status") == libvirt.VIR_DOMAIN_DIRTYRATE_MEASURED
        return _counter(values, "dirtyrate.megabytes_per_second") if is_over else None, parse_disk_reads(values)

    @contextmanager
    def guest(self, uuid: str, doing: str) -> Iterator[libvirt.virDomain]:
        """Look a guest up for calls beside passes, and translate libvirt's errors; its connection is theirs meanwhile.

        Raises GuestVanished, LibvirtUnreachable, Unsupported, and SensingFailed for what the calls do not translate.
        """
        with self._apart(doing) as apart:
            try:
                domain = apart.lookupByUUIDString(uuid)
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                    raise GuestVanished(f"guest {uuid} has ended") from error
                raise
            yield domain

    def set_parameters(self, values: Mapping[str, int]) -> None:
        try:
            self.connection.setMemoryParameters({f"shm_{name}": value for name, value in values.items()})
        except OverflowError as error:
            raise _refused(values, Cause.OUT_OF_RANGE, error) from error
        except LookupError as error:
            raise _refused(values, Cause.UNSUPPORTED, error) from error
        except libvirt.libvirtError as error:
            cause = _REFUSALS.get(error.get_error_code())
            if cause is None or self.is_broken(error):
                raise self._translated(error, "setting KSM's parameters") from error
            raise _refused(values, cause, error) from error

    def version(self) -> int:
        """Return the version of the libvirt at the other end: 9.0.0 is 9,000,000."""
        with self._translating("asking for libvirt's version"):
            return self.connection.getLibVersion()

    def setting_refused(self) -> Cause | None:
        """Return why this connection may not set parameters, None if it may; sets nothing.

        Asks for a counter to be set, which is impossible: a connection without the right is refused first
        (virNodeSetMemoryParameters checks the connection, then the access driver, then the names). The daemon logs it.
        """
        try:
            self.connection.setMemoryParameters({"shm_full_scans": 0})
        except LookupError:
            return Cause.UNSUPPORTED
        except libvirt.libvirtError as error:
            cause = _REFUSALS.get(error.get_error_code())
            if error.get_error_code() == libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED or cause is Cause.OUT_OF_RANGE:
                return None
            if cause is None or self.is_broken(error):
                raise self._translated(error, "asking who may set KSM's parameters") from error
            return cause
        return None

    def is_broken(self, error: libvirt.libvirtError, apart: libvirt.virConnect | None = None) -> bool:
        """Return whether the connection failed, by its socket or as a whole; a single call may fail, as too large.

        `apart` is the call's own, where it is not that of passes.
        """
        kind = error.get_error_domain(), error.get_error_code()
        if kind == (libvirt.VIR_FROM_RPC, libvirt.VIR_ERR_SYSTEM_ERROR) or kind[1] == libvirt.VIR_ERR_INVALID_CONN:
            return True
        return not self.connections.are_alive(apart)

    @contextmanager
    def _apart(self, doing: str) -> Iterator[libvirt.virConnect]:
        """Lend a connection for calls beside passes, and translate libvirt's errors, also of its opening."""
        with self._translating(doing), self.connections.apart() as apart, self._translating(doing, apart):
            yield apart

    @contextmanager
    def _translating(self, doing: str, apart: libvirt.virConnect | None = None) -> Iterator[None]:
        try:
            yield
        except libvirt.libvirtError as error:
            raise self._translated(error, doing, apart) from error

    def _translated(
        self, error: libvirt.libvirtError, doing: str, apart: libvirt.virConnect | None = None
    ) -> VirtksmError:
        message = f"{doing} on {self.uri}: {error.get_error_message()}"
        if self.is_broken(error, apart):
            return LibvirtUnreachable(message, remedy=at_host(self.uri, f"systemctl status {libvirt_daemon()}"))
        if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
            return Unsupported(message, remedy=USE_QEMU)
        journal = at_host(self.uri, f"journalctl -u {libvirt_daemon()}")
        return SensingFailed(message, remedy=f"virsh -c {self.uri} node-memory-tune; {journal}")


UNASKED = [[libvirt.VIR_CRED_AUTHNAME, libvirt.VIR_CRED_PASSPHRASE], lambda _asked, _opaque: -1, None]
"""How libvirt authenticates this user: by its auth.conf alone, as nobody is asked for what that has not."""


def client_version() -> int:
    """Return the version of libvirt's library in this process: 9.0.0 is 9,000,000."""
    return libvirt.getVersion()


def open_host(uri: str, *, read_only: bool = False, apart: bool = False) -> LibvirtHost:
    """Open a connection, which can set parameters unless it is `read_only`; raises LibvirtUnreachable.

    `apart`: what is asked of guests has a connection of its own. Without a terminal ssh asks nobody: it would try empty
    passwords, which may lock an account, or open a window.
    """
    libvirt.registerErrorHandler(lambda _context, _error: None, None)  # errors arrive as exceptions, not on stderr
    opened = uri if _has_terminal() else without_questions(uri)
    try:
        connection = libvirt.openAuth(opened, UNASKED, libvirt.VIR_CONNECT_RO if read_only else 0)
        host = LibvirtHost(connection, partial(libvirt.openAuth, opened, UNASKED) if apart else None)
    except libvirt.libvirtError as error:
        made = LibvirtRefuses if error.get_error_code() in _LASTING else LibvirtUnreachable
        said = error.get_error_message()
        cause, remedy = explain_failure(uri, error.get_error_code(), error.get_int1(), said, daemon=libvirt_daemon())
        raise made(f"{uri}: {cause} ({said})", remedy=remedy) from error
    host.uri = host.uri.removesuffix(opened[len(uri) :])  # the host's files are found by it
    return host


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def explain_failure(uri: str, code: int, number: int, said: str, *, daemon: str) -> tuple[str, str]:
    """Return why a connection could not be opened, and what to do; pure.

    `code` and `number` are libvirt's error code and, with VIR_ERR_SYSTEM_ERROR, the errno of the call that failed;
    `said` has what ssh said (tests/contract/test_connection_failures.py has what libvirt reports); `daemon` is this
    host's (systemd.py).
    """
    number = number if code == libvirt.VIR_ERR_SYSTEM_ERROR else 0
    if code in _DENIED or number in (errno.EACCES, errno.EPERM):
        return _explain_refusal(uri, said, daemon)
    if is_alias(uri):
        return "no such alias", "name a URI such as qemu:///system, or define the alias in libvirt.conf"
    if not is_local(uri) and code == libvirt.VIR_ERR_SYSTEM_ERROR:
        if uri.partition(":")[0].endswith("+ssh"):
            return _explain_ssh(uri, said)
        return "the host cannot be reached", at_host(uri, f"systemctl status {daemon}; journalctl -u {daemon}")
    if number in (errno.ENOENT, errno.ECONNREFUSED):
        return "libvirt is not running", f"systemctl start {daemon}.socket"
    if code in _NO_SUCH_CONNECTION:
        return "no such connection", "name another URI, such as qemu:///system"
    return "no connection", at_host(uri, f"journalctl -u {daemon}")


ASKED = (
    "libvirt asks for a password, and its auth.conf has none that is right",
    'name and password in /etc/libvirt/auth.conf, auth_unix_rw = "polkit" in the configuration of that daemon, or '
    "another transport, such as qemu+ssh",
)
MAY_NOT_THERE = "this user may not connect", "log in as root, or as a member of that host's group libvirt"


def _explain_refusal(uri: str, said: str, daemon: str) -> tuple[str, str]:
    if "SASL" in said or "credentials" in said or said == "authentication failed: authentication failed":
        return ASKED
    if is_local(uri):
        return "this user may not connect", "run this with sudo, or as a member of the group libvirt"
    if uri.partition(":")[0].endswith("+ssh"):
        return MAY_NOT_THERE
    return "this user may not connect", at_host(uri, f"journalctl -u {daemon}")


def _explain_ssh(uri: str, said: str) -> tuple[str, str]:
    user, host, port = address(uri)
    words = f"{f'-p {port} ' if port else ''}{f'{user}@' if user else ''}{host}"
    if "Permission denied (" in said:  # ssh's; without, that of libvirt's socket
        return "the host accepts no key of this user's", f"ssh-copy-id {words}; for a key with a passphrase: ssh-add"
    if "Permission denied" in said:
        return MAY_NOT_THERE
    if "Host key verification failed" in said:
        return "ssh does not know the host's key", f"ssh {words}, once by hand"
    return "the host cannot be reached", f"ssh {words} virsh uri"


def parse_memory_stats(values: Mapping[str, int]) -> HostMemory:
    """Turn virNodeGetMemoryStats' dictionary (KiB) into a HostMemory; raises SensingFailed if one is missing."""

    def read(name: str) -> int:
        kib = _counter(values, name)
        if kib is None:
            raise SensingFailed(f"libvirt does not report the host's {name} memory", remedy="KSM needs a Linux host")
        return kib

    return HostMemory(
        total_kib=read("total"), free_kib=read("free"), buffers_kib=read("buffers"), cached_kib=read("cached")
    )


def parse_disk_reads(values: Mapping[str, object]) -> int | None:
    """Return the bytes read from all of a guest's disks (VIR_DOMAIN_STATS_BLOCK); None where no disk tells."""
    counters = (_counter(values, name) for name in values if name.startswith("block.") and name.endswith(".rd.bytes"))
    reads = [one for one in counters if one is not None]
    return sum(reads) if reads else None


def _runs(guests: tuple[Guest, ...]) -> list[tuple[str, int | None]]:
    """Return what a list of guests is asked for; the memory that they hold changes from list to list."""
    return [(guest.key, guest.max_kib) for guest in guests]


def _read_max_kib(domain: libvirt.virDomain) -> int | None:
    try:
        return _counter({"max": domain.maxMemory()}, "max")
    except libvirt.libvirtError:  # the guest has ended, or the connection has, which the next call reports
        return None


def _counter(values: Mapping[str, object], name: str, maximum: int = 2**64 - 1) -> int | None:
    """Return one of libvirt's numbers, which are unsigned; None if it is missing or no such number."""
    value = values.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= maximum else None


def _refused(values: Mapping[str, int], cause: Cause, error: Exception) -> SettingsRefused:
    return SettingsRefused(str(error), parameter=next(iter(values)), cause=cause)


_REFUSALS = {
    libvirt.VIR_ERR_SYSTEM_ERROR: Cause.UNKNOWN,
    libvirt.VIR_ERR_OPERATION_DENIED: Cause.READ_ONLY,
    libvirt.VIR_ERR_ACCESS_DENIED: Cause.NOT_AUTHORIZED,
    libvirt.VIR_ERR_AUTH_FAILED: Cause.NOT_AUTHORIZED,
    libvirt.VIR_ERR_AUTH_CANCELLED: Cause.NOT_AUTHORIZED,
    libvirt.VIR_ERR_AUTH_UNAVAILABLE: Cause.NOT_AUTHORIZED,
    libvirt.VIR_ERR_OPERATION_INVALID: Cause.UNSUPPORTED,
    libvirt.VIR_ERR_INVALID_ARG: Cause.OUT_OF_RANGE,
}

_DENIED = (
    libvirt.VIR_ERR_AUTH_FAILED,
    libvirt.VIR_ERR_AUTH_CANCELLED,
    libvirt.VIR_ERR_AUTH_UNAVAILABLE,
    libvirt.VIR_ERR_ACCESS_DENIED,
    libvirt.VIR_ERR_OPERATION_DENIED,
)
_NO_SUCH_CONNECTION = (
    libvirt.VIR_ERR_NO_CONNECT,
    libvirt.VIR_ERR_NO_SUPPORT,
    libvirt.VIR_ERR_INVALID_ARG,
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
    libvirt.VIR_ERR_INTERNAL_ERROR,  # a URI that cannot be parsed, or has a path that its driver does not know
)
_LASTING = (*_DENIED, *(code for code in _NO_SUCH_CONNECTION if code != libvirt.VIR_ERR_INTERNAL_ERROR))
"""Errors of opening that a further attempt meets again."""
