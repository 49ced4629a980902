"""The libvirt adapter over a connection that is a fake: what is asked again, and what is not."""

import gc
import threading
import weakref
from contextlib import ExitStack
from typing import Any, cast

import libvirt
import pytest

from tests.fakes import FakeSwitch, TargetPolicy, fake_cycle
from tests.lab.fake_libvirt import FakeConnection, FakeDomain
from virtksm.errors import LibvirtTimeout, LibvirtUnreachable, SensingFailed
from virtksm.host.libvirt_connection import LibvirtHost, parse_disk_reads
from virtksm.model.decision import Trigger, Triggers
from virtksm.model.snapshot import KERNEL_DEFAULTS


class Bench:
    """A cycle over a connection to two guests, and what it knows of them."""

    def __init__(self) -> None:
        self.domains = [FakeDomain(name, name, 64) for name in ("one", "two")]
        self.connection = FakeConnection(self.domains, {"shm_pages_to_scan": 100, "shm_sleep_millisecs": 20})
        self.switch = FakeSwitch()
        self.host = LibvirtHost(cast(libvirt.virConnect, self.connection))
        self.host.list_s = 60.0
        policy = TargetPolicy(target=KERNEL_DEFAULTS, wants_maxima=True)
        self.cycle = fake_cycle(hypervisor=self.host, policy=policy, switch=self.switch)

    def maxima(self, trigger: Trigger) -> list[int | None]:
        report = self.cycle.run(Triggers(kinds=frozenset({trigger})))
        return [guest.max_kib for guest in report.snapshot.guests]


def waiting_list() -> threading.Thread:
    """Return the thread of a list that is waited for."""
    (waiting,) = [one for one in threading.enumerate() if one.name == "call-a list of the guests"]
    return waiting


def test_a_maximum_is_asked_once_and_again_only_of_the_guest_that_an_event_names() -> None:
    bench = Bench()
    assert [bench.maxima(Trigger.TIMER) for _ in range(3)] == [[64, 64]] * 3
    assert [one.asked for one in bench.domains] == [1, 1]
    bench.domains[1].max_kib = 192
    for _ in range(100):
        bench.host.forget_max("two")
    assert bench.maxima(Trigger.MEMORY_DEVICE) == bench.maxima(Trigger.TIMER) == [64, 192]
    assert [one.asked for one in bench.domains] == [1, 2]


def test_what_is_used_no_more_closes_its_connection_at_once() -> None:
    """Else libvirtd's log has a connection that ended in its midst, as a command ended first."""
    bench = Bench()
    bench.maxima(Trigger.TIMER)
    freed = weakref.ref(bench.host)
    gc.disable()
    try:
        del bench
        assert freed() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("cause", ["off", "a failure"])
def test_a_maximum_that_changes_before_a_pass_that_does_not_ask_is_asked_by_the_next(cause: str) -> None:
    bench = Bench()
    bench.maxima(Trigger.TIMER)
    bench.domains[0].max_kib = 192
    bench.host.forget_max("one")
    if cause == "off":
        bench.switch.turn_off()
        assert bench.maxima(Trigger.MEMORY_DEVICE) == [None, None]
        bench.switch.turn_on()
    else:
        bench.connection.listing_fails = True
        with pytest.raises(SensingFailed):
            bench.maxima(Trigger.MEMORY_DEVICE)
        bench.connection.listing_fails = False
    assert bench.maxima(Trigger.TIMER) == [192, 64]


def test_guests_that_have_gone_leave_nothing_behind_where_nobody_asks_for_maxima() -> None:
    bench = Bench()
    bench.switch.turn_off()
    bench.maxima(Trigger.TIMER)
    for uuid in ("gone", "one", None):
        bench.host.forget_max(uuid)
    bench.maxima(Trigger.TIMER)
    assert bench.host.stale == {"one", None}


@pytest.mark.parametrize("trigger", [Trigger.RETUNE, Trigger.RELOAD])
def test_who_asks_has_every_maximum_asked_again(trigger: Trigger) -> None:
    bench = Bench()
    bench.maxima(Trigger.TIMER)
    for domain in bench.domains:
        domain.max_kib = 192
    assert bench.maxima(trigger) == [192, 192]


@pytest.mark.parametrize("is_local", [True, False])
def test_while_a_guest_holds_up_libvirt_s_list_a_pass_goes_by_the_last_one_until_that_takes_too_long(
    is_local: bool,
) -> None:
    bench, released = Bench(), threading.Event()
    memory = dict.fromkeys(("total", "free", "buffers", "cached"), 0)
    bench.connection.answered |= memory
    cycle = bench.cycle if is_local else bench.cycle._replace(local=None)

    def names() -> list[str]:
        report = cycle.run(Triggers(kinds=frozenset({Trigger.POKE})))
        return [guest.name for guest in report.snapshot.guests]

    came: list[bool] = []
    bench.host.came_late = lambda: came.append(True)
    assert names() == ["one", "two"]
    bench.domains.append(FakeDomain("three", "three", 64))
    bench.connection.before_list, bench.host.list_s = released.wait, 0.0
    try:
        for _ in range(2):
            assert (names(), came) == (["one", "two"], [])
        waiting = waiting_list()
        released.set()
        waiting.join()
        released.clear()
        assert (names(), came) == (["one", "two", "three"], [True]), "what came late counts"
        waiting = waiting_list()
        bench.host.call_timeout_s = 0
        with pytest.raises(LibvirtTimeout):
            names()
    finally:
        released.set()
    waiting.join()
    bench.host.call_timeout_s = bench.host.list_s = 60.0
    bench.connection.before_list = lambda: None
    del bench.domains[0]
    assert (names(), came) == (["two", "three"], [True, True])


@pytest.mark.parametrize(
    ("passes", "then", "follows"),
    [(1, "the same", False), (1, "another guest", True), (2, "the same", True), (1, "a failure", True)],
)
def test_a_list_that_came_late_asks_for_a_pass_where_it_may_have_news_or_lists_that_are_always_late_would_for_ever(
    passes: int, then: str, *, follows: bool
) -> None:
    bench, released = Bench(), threading.Event()
    came: list[bool] = []
    bench.host.came_late = lambda: came.append(bench.host.late_list is None)
    bench.host.running_guests(with_max=True)
    bench.connection.before_list, bench.host.list_s = released.wait, 0.0
    for _ in range(passes):
        assert len(bench.host.running_guests(with_max=True)) == 2, "the last list"
    if then == "another guest":
        bench.domains.append(FakeDomain("three", "three", 64))
    bench.connection.listing_fails = then == "a failure"
    waiting = waiting_list()
    released.set()
    waiting.join()
    assert came == [True] * follows, "a pass that follows asks anew"
    if then == "a failure":
        with pytest.raises(SensingFailed):
            bench.host.running_guests(with_max=True)


def test_a_connection_is_closed_after_a_call_beside_passes_has_returned_and_takes_none_from_then_on() -> None:
    bench = Bench()
    asked, released, closed = threading.Event(), threading.Event(), threading.Event()

    def hang() -> None:
        asked.set()
        released.wait()

    bench.connection.before_lookup = hang
    thread = threading.Thread(target=bench.host.start_dirty_rate, args=("one", 60))
    thread.start()
    try:
        asked.wait()
        bench.host.connections.close(closed.set)
        assert not closed.is_set()
        with pytest.raises(LibvirtUnreachable):
            bench.host.start_dirty_rate("two", 60)
        assert not closed.is_set()
    finally:
        released.set()
        thread.join()
    assert closed.is_set()
    assert [one.measured for one in bench.domains] == [1, 0]


@pytest.mark.parametrize(
    ("answered", "reads"),
    [
        ({}, None),
        ({"block.count": 1, "block.0.name": "sda"}, None),
        ({"block.0.rd.bytes": 512, "block.1.rd.bytes": 0, "block.2.name": "sr0", "block.1.wr.bytes": 7}, 512),
        ({"block.0.rd.bytes": -1, "block.1.rd.bytes": "x", "block.2.rd.bytes": 3}, 3),
    ],
)
def test_the_reads_of_all_disks_that_tell_are_added_up(answered: dict[str, object], reads: int | None) -> None:
    assert parse_disk_reads(answered) == reads


@pytest.mark.parametrize("status", [libvirt.VIR_DOMAIN_DIRTYRATE_MEASURED, libvirt.VIR_DOMAIN_DIRTYRATE_MEASURING])
def test_one_call_tells_a_guest_s_rate_once_measured_and_its_reads(status: int) -> None:
    bench = Bench()
    rate = {"dirtyrate.calc_status": status, "dirtyrate.megabytes_per_second": 7}
    bench.connection.answered = {"block.0.rd.bytes": 512, **rate}
    is_over = status == libvirt.VIR_DOMAIN_DIRTYRATE_MEASURED
    assert bench.host.changes("one", is_measured=True) == (7 if is_over else None, 512)
    both = libvirt.VIR_DOMAIN_STATS_BLOCK | libvirt.VIR_DOMAIN_STATS_DIRTYRATE
    assert (bench.connection.lookups, bench.connection.asked_for) == (1, [both])
    bench.connection.answered = {"block.0.rd.bytes": 512}
    assert bench.host.changes("one", is_measured=False) == (None, 512)
    assert bench.connection.asked_for[1:] == [libvirt.VIR_DOMAIN_STATS_BLOCK]


def test_a_connection_that_nobody_uses_is_closed_at_once() -> None:
    bench = Bench()
    bench.host.start_dirty_rate("one", 60)
    closed = threading.Event()
    bench.host.connections.close(closed.set)
    assert closed.is_set()


def test_what_is_asked_of_guests_has_a_connection_of_its_own_that_is_opened_again_and_closed() -> None:
    domains = [FakeDomain("one", "one", 64)]
    opened: list[FakeConnection] = []

    def open_apart() -> libvirt.virConnect:
        opened.append(FakeConnection(domains))
        return cast(libvirt.virConnect, opened[-1])

    main = FakeConnection([], {"shm_pages_to_scan": 100})
    host = LibvirtHost(cast(libvirt.virConnect, main), open_apart)
    assert host.ksm_state().settings.pages_to_scan == 100
    assert opened == []
    for _ in range(2):
        assert [guest.name for guest in host.running_guests(with_max=True)] == ["one"]
    host.start_dirty_rate("one", 60)
    assert len(opened) == 1
    opened[0].is_alive = False
    host.running_guests(with_max=False)
    assert len(opened) == 2
    host.connections.close(lambda: None)
    assert [one.is_alive for one in opened] == [False, False]


def test_calls_at_once_have_a_connection_each_of_which_one_stays_open() -> None:
    """libvirt 9.0 fails one call of a dead connection and leaves the others for ever."""
    opened: list[FakeConnection] = []

    def open_apart() -> libvirt.virConnect:
        opened.append(FakeConnection([FakeDomain("one", "one", 64)]))
        return cast(libvirt.virConnect, opened[-1])

    host = LibvirtHost(cast(libvirt.virConnect, FakeConnection([])), open_apart)
    with ExitStack() as calls:
        for _ in range(3):
            calls.enter_context(host.guest("one", "asking"))
        assert len(opened) == 3
    assert sum(one.is_alive for one in opened) == 1
    with host.guest("one", "asking"):
        assert len(opened) == 3
        host.connections.close(lambda: None)
        assert sum(one.is_alive for one in opened) == 1, "it is in use"
    assert not any(one.is_alive for one in opened)


def test_one_that_cannot_be_opened_is_libvirt_s_fault_and_leaves_nothing_behind() -> None:
    def open_apart() -> libvirt.virConnect:
        error: Any = libvirt.libvirtError("no route to host")
        error.err = (libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_RPC, "", 2, None, None, None, 0, 0)
        raise error

    host = LibvirtHost(cast(libvirt.virConnect, FakeConnection([])), open_apart)
    with pytest.raises(LibvirtUnreachable, match="listing the guests"):
        host.running_guests(with_max=False)
    closed = threading.Event()
    host.connections.close(closed.set)
    assert closed.is_set()


def test_connections_apart_are_kept_alive_as_the_one_of_passes_is_where_their_host_may_go_silent() -> None:
    for keepalive_s, kept_alive in ((None, None), (7, (7, 1))):
        apart = FakeConnection([])
        host = LibvirtHost(cast(libvirt.virConnect, FakeConnection([])), lambda: cast(libvirt.virConnect, apart))  # noqa: B023
        host.connections.keepalive_s = keepalive_s
        host.running_guests(with_max=False)
        assert apart.kept_alive == kept_alive


def test_a_connection_apart_that_has_died_is_no_guest_s_fault() -> None:
    apart = FakeConnection([FakeDomain("one", "one", 64)])

    def die() -> None:
        apart.is_alive = False
        error: Any = libvirt.libvirtError("client socket is closed")
        error.err = (libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_RPC, "", 2, None, None, None, 0, 0)
        raise error

    apart.before_lookup = die
    host = LibvirtHost(cast(libvirt.virConnect, FakeConnection([])), lambda: cast(libvirt.virConnect, apart))
    with pytest.raises(LibvirtUnreachable):
        host.guest_xml("one")
