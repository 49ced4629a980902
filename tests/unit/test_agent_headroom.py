"""The room that schedulers read: never more than was found, steady while noise goes on, unknown rather than guessed."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import FakeClock, FakeFacts, FakeHypervisor, fake_cycle
from virtksm.agent.headroom import RISE_S, STEP, Rooms, SteadyRoom, steady
from virtksm.agent.passes import DonePass
from virtksm.config.schema import Config
from virtksm.guests.headroom import find_headroom, find_reserve_kib, host_of, need_of
from virtksm.guests.xml import UNKNOWN, GuestXml
from virtksm.model.decision import Trigger, Triggers
from virtksm.model.snapshot import Guest, HostMemory
from virtksm.policy import make_policy
from virtksm.values import replace

GIB = 1024 * 1024
STEP_KIB = 10
CONFIG = Config()
MEMORY = HostMemory(total_kib=100 * GIB, free_kib=60 * GIB, buffers_kib=0, cached_kib=0, available_kib=60 * GIB)


def published(*found: tuple[float, int]) -> list[int]:
    """Return what is published after each time and room that was found."""
    room, kib = None, []
    for now_s, found_kib in found:
        room = steady(room, found_kib, now_s, STEP_KIB)
        kib.append(room.kib)
    return kib


def test_a_room_falls_at_once_and_rises_to_the_least_of_ten_minutes_that_all_found_more() -> None:
    half_s = RISE_S / 2
    assert published((0, 100), (1, 99), (2, 50)) == [100, 99, 50]
    assert published((0, 50), (1, 90), (1 + half_s, 70), (2 + 2 * half_s, 80)) == [50, 50, 50, 70]
    assert published((0, 50), (1, 90), (1 + half_s, 59), (2 + 2 * half_s, 90)) == [50] * 4, "once it was no step more"
    assert published((0, 50), (1, 90), (1 + half_s, 40), (2 + 2 * half_s, 90)) == [50, 50, 40, 40]
    assert published((0, 50), (1, 60), (RISE_S, 60), (1 + RISE_S, 60)) == [50, 50, 50, 60]


@given(st.lists(st.tuples(st.floats(0, 1000), st.integers(0, 200)), max_size=30))
def test_no_more_is_published_than_was_found_and_rises_are_far_apart(passes: list[tuple[float, int]]) -> None:
    now_s, found = 0.0, []
    for wait_s, kib in passes:
        now_s += wait_s
        found.append((now_s, kib))
    shown = published(*found)
    assert all(kib <= most for kib, (_, most) in zip(shown, found, strict=True))
    rises = [found[at][0] for at in range(1, len(shown)) if shown[at] > shown[at - 1]]
    assert all(later - earlier >= RISE_S for earlier, later in pairwise(rises))


class Host:
    """A host with two guests, its passes, and the rooms after each."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.guests = tuple(Guest(uuid=name, name=name, domain_id=1, max_kib=4 * GIB) for name in ("one", "two"))
        self.facts = FakeFacts(memory=MEMORY, rss_kib=dict.fromkeys(("one", "two"), GIB))
        self.hypervisor = FakeHypervisor(running=self.guests)
        policy = make_policy(CONFIG)
        self.cycle = fake_cycle(hypervisor=self.hypervisor, local=self.facts, policy=policy, clock=self.clock)
        self.known = {guest.key: GuestXml() for guest in self.guests}
        self.rooms = Rooms()

    def run(self, trigger: Trigger = Trigger.STARTED) -> None:
        report = self.cycle.run(Triggers(kinds=frozenset({trigger})))
        done = DonePass(report=report, config=CONFIG, heard_s=None, ended_s=self.clock.now_s)
        self.rooms.passed(done, self.known)

    def safe_gib(self) -> float | None:
        room_kib = self.rooms.room_kib(self.known)
        return None if room_kib is None else room_kib["safe"] / GIB


def test_the_room_is_that_of_the_command_for_the_guests_of_the_last_pass() -> None:
    host = Host()
    host.run()
    ksm = host.hypervisor.ksm_state()
    needs = [need_of(replace(one, rss_kib=GIB), GuestXml(), 4 * GIB) for one in host.guests]
    found = find_headroom(needs, host_of(MEMORY, ksm, CONFIG))
    assert host.rooms.room_kib(host.known) == found.room_kib._asdict()
    assert host.safe_gib() == 60 - find_reserve_kib(CONFIG, MEMORY) / GIB - 2 * 3 - (ksm.unmerge_kib or 0) / GIB


def test_it_is_unknown_until_every_guest_is_known_and_then_that_of_the_last_pass() -> None:
    host = Host()
    known, host.known = host.known, {}
    host.run()
    assert host.safe_gib() is None
    host.known = known
    first_gib = host.safe_gib()
    assert first_gib
    new = Guest(uuid="new", name="new", domain_id=1)
    host.hypervisor.running += (new,)
    host.known = {**known, new.key: UNKNOWN}
    host.run()
    assert host.safe_gib() is None, "nobody knows what it may grow to"
    host.known = {**known, new.key: GuestXml(memory_kib=GIB)}
    assert host.safe_gib() == first_gib - 1


def test_a_pass_that_reads_ksm_alone_changes_nothing_and_memory_that_comes_back_is_waited_for() -> None:
    host = Host()
    host.run()
    first_gib = host.safe_gib()
    assert first_gib
    host.facts.memory = replace(MEMORY, available_kib=50 * GIB)
    host.cycle.tenure.is_scanning = True
    host.run(Trigger.TIMER)
    assert host.safe_gib() == first_gib
    host.run()
    assert host.safe_gib() == first_gib - 10
    host.facts.memory = MEMORY
    for wait_s in (1.0, RISE_S - 1, 1.0):
        assert host.safe_gib() == first_gib - 10
        host.clock.now_s += wait_s
        host.run()
    assert host.safe_gib() == first_gib
    host.facts.memory = replace(MEMORY, available_kib=60 * GIB + MEMORY.usable_kib // STEP - 1)
    for _ in range(2):
        host.clock.now_s += RISE_S
        host.run()
    assert host.safe_gib() == first_gib, "noise"


def test_a_host_without_guests_has_the_room_that_there_is_now() -> None:
    host = Host()
    host.hypervisor.running = ()
    host.run()
    first_gib = host.safe_gib()
    assert first_gib
    host.facts.memory = replace(MEMORY, available_kib=50 * GIB)
    host.run(Trigger.TIMER)
    assert host.safe_gib() == first_gib - 10
    host.facts.memory = MEMORY
    for _ in range(2):
        host.clock.now_s += RISE_S
        host.run(Trigger.TIMER)
    assert host.safe_gib() == first_gib


def test_a_room_without_a_wait_is_the_whole_state() -> None:
    assert steady(None, 7, 0.0, STEP_KIB) == SteadyRoom(7)
    assert steady(SteadyRoom(7, 20, 1.0), 8, 2.0, STEP_KIB) == SteadyRoom(7)
