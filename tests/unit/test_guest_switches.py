"""Private guests are unmerged while they run, each once a run; what fails is survived, and costs no other guest."""

import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.fakes import FakeChoices, FakeClock, FakeFacts, FakeHypervisor, FakeMonitor, merging_guest
from tests.lab.agent_bench import unchanging
from tests.lab.hang import HANG_S
from tests.unit.test_agent_guest_xml import APART, PLAIN
from virtksm.agent.calls import BlockingCalls, GuestCalls, Result
from virtksm.agent.guest_switches import MAX_HANGING, MAX_RETRY_S, RETRY_S, GuestSwitches, ThisHost
from virtksm.agent.guest_xml import GuestReader
from virtksm.agent.log import Reporter
from virtksm.config.schema import Config
from virtksm.errors import LibvirtUnreachable, MonitorFailed, MonitorRefused, VirtksmError
from virtksm.guests.choices import COMMAND, Choice
from virtksm.guests.process import MergeableMemory
from virtksm.host.systemd import Notifier
from virtksm.model.snapshot import Guest
from virtksm.values import replace

DECLARED = '<domain><metadata><v:guest xmlns:v="urn:virtksm:guest" private="yes"/></metadata></domain>'
ENFORCED = Config(private_guests=("tenant-*",), private_enforce="unmerge")
WALL_S = 1_790_000_000.0


def guest(name: str, domain_id: int = 1) -> Guest:
    return Guest(uuid=f"uuid of {name}", name=name, domain_id=domain_id, rss_kib=1024)


class Monitors(FakeMonitor):
    """Fails or hangs for single guests, by name."""

    def __init__(self) -> None:
        super().__init__({})
        self.faults: dict[str, Exception] = {}
        self.hang: dict[str, threading.Event] = {}
        self.dying = False
        self.meanwhile: Callable[[], None] = lambda: None

    def set_merging(self, guest_uuid: str, *, merge: bool) -> None:
        name = guest_uuid.removeprefix("uuid of ")
        if name in self.hang:
            assert self.hang[name].wait(HANG_S)
            super().merging(guest_uuid)
        if name in self.faults:
            raise self.faults[name]
        super().set_merging(guest_uuid, merge=merge)
        self.meanwhile()
        if self.dying:
            raise SystemExit  # the agent is killed before it hears of it


class Impatient(BlockingCalls):
    """Waits for no guest whose monitor hangs, and for all others as long as it takes."""

    def __init__(self, hang: Mapping[str, threading.Event]) -> None:
        super().__init__()
        self._hang = hang

    async def run(
        self,
        what: str,
        call: Callable[[], Result],
        limit_s: float | None = None,
        **how: Any,  # noqa: ANN401  # the real one's other options
    ) -> Result:
        limit_s = 0.0 if what.removeprefix("switch guest ") in self._hang else limit_s
        return await super().run(what, call, limit_s, **how)


class Bench:
    """Guests, their QEMU, and an agent's part that keeps the private ones from merging."""

    def __init__(self, *guests: Guest, config: Config = ENFORCED, xml: dict[str, str] | None = None) -> None:
        self.libvirt = FakeHypervisor()
        self.monitors, self.choices, self.facts = Monitors(), FakeChoices(), FakeFacts()
        self.clock, self.unmerged, self.switched = FakeClock(), set[str](), list[tuple[str, str]]()
        self.passes: list[frozenset[str]] = []
        """What was unmerged as each pass was asked for."""
        self.monitor: FakeMonitor | None = self.monitors
        self.configuration = unchanging(config)
        self.reported: list[tuple[str, bool]] = []
        self.exposed: list[tuple[str, ...]] = []
        self.reader, self.part = self._make()
        self.running = guests
        self.xml = xml or {}

    def _make(self) -> tuple[GuestReader, GuestSwitches]:
        bench = self

        class Reports(Reporter):
            def guests_not_switched(self, what: str, error: VirtksmError, *, is_news: bool) -> None:
                super().guests_not_switched(what, error, is_news=is_news)
                bench.reported.append((error.message, is_news))

            def guests_exposed(self, names: tuple[str, ...]) -> None:
                super().guests_exposed(names)
                bench.exposed.append(names)

        reporter = Reports(Notifier({}))
        reader = GuestReader(lambda: self.libvirt, self.configuration, reporter)
        reader.notes.unmerged = self.unmerged
        part = GuestSwitches(
            reader=reader,
            source=lambda: self.monitor,
            changed=lambda: self.passes.append(frozenset(self.unmerged)),
            switched=lambda one, kind, why: self.switched.append((f"{kind} {one.name}", why)),
            clock=self.clock,
            calls=GuestCalls(MAX_HANGING, Impatient(self.monitors.hang)),
        )
        reader.learned = part.see
        part.connect(ThisHost(self.choices, lambda: self.facts))
        return reader, part

    def restart(self) -> None:
        """Start the agent anew, as after a crash."""
        self.unmerged.clear()
        self.monitors.dying = False
        self.reader, self.part = self._make()

    async def settle(self, *guests: Guest) -> None:
        """Have a pass see the guests, and wait until nothing is due for any of them."""
        self.running = guests or self.running
        for one in self.running:
            self.libvirt.xml[one.uuid] = self.xml.get(one.name, PLAIN)
            self.monitors.guests.setdefault(one.uuid, merging_guest(64))
        self.reader.see(self.running, again=True)
        while self.reader.due:
            await self.reader.read_when_due()
        before = len(self.exposed)
        while len(self.exposed) == before:
            step = asyncio.ensure_future(self.part.switch_when_due())
            while not step.done() and len(self.exposed) == before:  # noqa: ASYNC110  # either ends it
                await asyncio.sleep(0.001)
            if not step.done():
                step.cancel()
            await asyncio.wait({step})
            if not step.cancelled() and (error := step.exception()):
                raise error

    @property
    def sets(self) -> list[tuple[str, bool]]:
        """The guests that were switched since this was asked last."""
        done = [(uuid.removeprefix("uuid of "), merge) for uuid, merge in self.monitors.sets]
        self.monitors.sets.clear()
        return done


async def test_each_private_guest_is_unmerged_once_a_run_and_merges_again_when_it_is_private_no_longer() -> None:
    vault, tenant, other = guest("vault"), guest("tenant-a"), guest("other")
    bench = Bench(vault, tenant, other, xml={"vault": DECLARED, "other": APART})
    await bench.settle()
    assert sorted(bench.sets) == [("tenant-a", False), ("vault", False)]
    assert (bench.unmerged, bench.exposed[-1]) == ({vault.key, tenant.key}, ())
    assert bench.passes[-1] == bench.unmerged, "a pass is to know"
    assert {one.is_done for one in bench.choices.kept.values()} == {True}
    await bench.settle()
    bench.restart()
    await bench.settle()
    assert (bench.sets, bench.unmerged) == ([], {vault.key, tenant.key}), "done once, and known to the next agent"
    bench.configuration.in_force = replace(ENFORCED, private_guests=("tenant-*", "!tenant-a"))
    bench.xml = {}
    await bench.settle()
    assert sorted(bench.sets) == [("tenant-a", True), ("vault", True)]
    assert (bench.unmerged, bench.choices.kept) == (set(), {})
    assert not bench.passes[-1]
    assert sorted(bench.switched) == [
        ("merging tenant-a", "no longer private"), ("merging vault", "no longer private"),
        ("unmerged tenant-a", "private"), ("unmerged vault", "private"),
    ]  # fmt: skip


async def test_a_guest_that_rewrites_is_unmerged_and_merges_again_by_the_policys_word_whatever_is_enforced() -> None:
    loud, tenant = guest("loud"), guest("tenant-a")
    bench = Bench(loud, tenant, config=Config())
    await bench.settle()
    bench.part.follow((loud.key, "of a guest that has ended/7"))
    await bench.settle()
    assert (bench.sets, bench.unmerged) == ([("loud", False)], {loud.key})
    bench.restart()
    await bench.settle()
    bench.part.follow(None)
    await bench.settle()
    assert bench.sets == [], "until a policy names those that rewrite, and while it only observes"
    bench.part.follow(())
    await bench.settle()
    assert bench.sets == [("loud", True)]
    bench.part.follow((loud.key, tenant.key))
    bench.configuration.in_force = ENFORCED
    await bench.settle()
    bench.part.follow(())
    await bench.settle()
    assert sorted(bench.sets) == [("loud", False), ("loud", True), ("tenant-a", False)], "a private one stays out"
    assert bench.switched[-1] == ("merging loud", "no longer kept out for rewriting")
    assert ("unmerged loud", "rewrites what merges") in bench.switched


def test_what_the_policy_says_is_heard_at_once_and_once() -> None:
    bench = Bench(guest("loud"))
    bench.part.seen.clear()
    bench.part.follow(("a",))
    assert bench.part.seen.is_set()
    bench.part.seen.clear()
    bench.part.follow(("a",))
    assert not bench.part.seen.is_set()


async def test_a_new_run_of_a_guest_has_forgotten_it_whatever_its_domain_id() -> None:
    bench = Bench(guest("tenant-a"))
    await bench.settle()
    bench.facts.runs = {"uuid of tenant-a": "another process"}
    bench.monitors.guests.clear()
    await bench.settle()
    assert bench.sets == [("tenant-a", False)] * 2
    await bench.settle(guest("other"))
    assert (bench.choices.kept, bench.unmerged) == ({}, set())


async def test_memory_that_is_plugged_in_is_unmerged_too() -> None:
    bench = Bench(guest("tenant-a"))
    await bench.settle()
    bench.xml["tenant-a"] = "<domain><memory unit='KiB'>4096</memory></domain>"
    bench.libvirt.xml["uuid of tenant-a"] = bench.xml["tenant-a"]
    bench.reader.reread("uuid of another")
    assert bench.reader.due == {}
    bench.reader.reread("uuid of tenant-a")
    await bench.reader.read_when_due()
    await bench.part.switch_when_due()
    assert bench.sets == [("tenant-a", False)] * 2
    await bench.settle()
    assert bench.sets == []


async def test_nothing_is_switched_unless_it_is_wanted_and_what_was_is_undone_when_it_is_not() -> None:
    bench = Bench(guest("tenant-a"), config=replace(ENFORCED, private_enforce="report"))
    await bench.settle()
    assert (bench.sets, bench.exposed[-1]) == ([], ("tenant-a",))
    bench.configuration.in_force = ENFORCED
    await bench.settle()
    bench.configuration.in_force = replace(ENFORCED, private_enforce="report")
    await bench.settle()
    assert bench.sets == [("tenant-a", False), ("tenant-a", True)]


async def test_while_the_policy_only_observes_no_guest_is_unmerged_or_let_in() -> None:
    observing = replace(ENFORCED, policy="observe")
    bench = Bench(guest("tenant-a"), guest("loud"), config=observing)
    bench.part.follow(("uuid of loud/1",))
    await bench.settle()
    assert (bench.sets, bench.exposed[-1]) == ([], ("tenant-a",))
    bench.configuration.in_force = ENFORCED
    await bench.settle()
    assert sorted(bench.sets) == [("loud", False), ("tenant-a", False)]
    bench.configuration.in_force = replace(observing, private_guests=(), private_enforce="report")
    bench.part.follow(())
    await bench.settle()
    assert (bench.sets, len(bench.unmerged)) == ([], 2)
    bench.configuration.in_force = Config()
    await bench.settle()
    assert sorted(bench.sets) == [("loud", True), ("tenant-a", True)]


async def test_no_guest_is_unmerged_that_was_to_be_before_the_policy_only_observes() -> None:
    class Reloading(FakeChoices):
        def read(self) -> dict[str, Choice]:
            bench.configuration.in_force = replace(ENFORCED, policy="observe")
            return super().read()

    bench = Bench(guest("tenant-a"))
    bench.choices = Reloading()
    bench.restart()
    await bench.settle()
    assert bench.sets == []


@pytest.mark.parametrize("merge", [False, True])
async def test_a_switch_that_the_agent_was_killed_in_is_made_again(merge: bool) -> None:
    bench = Bench(guest("tenant-a"))
    if merge:
        await bench.settle()
        bench.configuration.in_force = Config()
    bench.monitors.dying = True
    with pytest.raises(RuntimeError, match="SystemExit"):
        await bench.settle()
    assert [one.is_done for one in bench.choices.kept.values()] == [False]
    bench.restart()
    bench.sets.clear()
    await bench.settle()
    assert (bench.sets, len(bench.unmerged)) == ([("tenant-a", merge)], int(not merge))


async def test_what_a_command_has_chosen_holds_for_that_run() -> None:
    bench = Bench(guest("tenant-a"))
    await bench.settle()
    (done,) = bench.choices.kept.values()
    bench.choices.kept["uuid of tenant-a"] = replace(done, merge=True, why="command")
    bench.sets.clear()
    await bench.settle()
    assert (bench.sets, bench.unmerged, bench.exposed[-1]) == ([], set(), ("tenant-a",))


@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_what_a_command_chooses_while_the_agent_switches_stays(when: str) -> None:
    bench = Bench(guest("tenant-a"))
    await bench.settle()
    (done,) = bench.choices.kept.values()
    theirs = replace(done, merge=True, why=COMMAND)
    bench.choices.kept.clear()

    def choose() -> None:
        bench.choices.note("uuid of tenant-a", theirs)

    if when == "before":
        read = bench.choices.read

        def read_and_choose() -> dict[str, Choice]:
            found = read()
            choose()
            return found

        bench.choices.read = read_and_choose  # type: ignore[method-assign]
    else:
        bench.monitors.meanwhile = choose
    bench.sets.clear()
    await bench.settle()
    assert bench.choices.kept == {"uuid of tenant-a": theirs}
    assert bench.sets == ([] if when == "before" else [("tenant-a", False)])
    assert (bench.unmerged, bench.exposed[-1]) == (set(), ("tenant-a",))


async def test_a_choice_for_a_guest_that_no_pass_has_listed_yet_is_kept_until_that_run_ends() -> None:
    bench = Bench(guest("other"))
    theirs = Choice(name="new", process="7/7", merge=False, why=COMMAND, at_s=WALL_S, is_done=True)
    bench.choices.note("uuid of new", theirs)
    bench.facts.living = {"7/7"}
    await bench.settle()
    assert bench.choices.kept == {"uuid of new": theirs}
    bench.facts.living.clear()
    await bench.settle()
    assert bench.choices.kept == {}


async def test_over_another_connection_what_was_unmerged_stays_so_while_xml_is_read_again() -> None:
    bench = Bench(guest("tenant-a"), guest("tenant-b"))
    await bench.settle()
    bench.passes.clear()
    bench.reader.forget()
    bench.part.connect(ThisHost(bench.choices, lambda: bench.facts))
    bench.reader.see(bench.running, again=True)
    bench.reader.at_once, bench.part.found = 1, {}
    await bench.reader.read_when_due()
    step = asyncio.ensure_future(bench.part.switch_when_due())
    while not bench.part.found:  # noqa: ASYNC110  # it sets no event
        await asyncio.sleep(0.001)
    step.cancel()
    await asyncio.wait({step})
    assert (len(bench.reader.due), len(bench.unmerged), bench.passes) == (1, 2, [])


async def test_without_the_right_it_is_reported_once_and_tried_again_much_later_or_when_asked() -> None:
    bench = Bench(guest("tenant-a"), guest("tenant-b"))
    bench.monitors.refuses = MonitorRefused("access denied", remedy="install the rule")
    await bench.settle()
    bench.clock.now_s += MAX_RETRY_S - 1
    await bench.settle()
    assert bench.reported == [("access denied", True), ("access denied", False)]
    bench.clock.now_s += 2
    await bench.settle()
    assert bench.reported[2:] == [("access denied", False)] * 2
    assert bench.exposed[-1] == ("tenant-a", "tenant-b")
    bench.monitors.refuses = None
    bench.part.see(again=True)
    await bench.settle()
    assert len(bench.sets) == 2


async def test_what_fails_for_one_guest_costs_no_other_and_is_tried_again_later_and_later() -> None:
    bench = Bench(guest("tenant-a"), guest("tenant-b"))
    bench.monitors.faults["tenant-a"] = MonitorFailed("its monitor is busy")
    await bench.settle()
    assert (bench.sets, bench.exposed[-1]) == ([("tenant-b", False)], ("tenant-a",))
    for wait_s in (RETRY_S, 2 * RETRY_S, 4 * RETRY_S):
        bench.clock.now_s += wait_s - 1
        before = len(bench.reported)
        await bench.settle()
        assert len(bench.reported) == before
        bench.clock.now_s += 1
        await bench.settle()
        assert bench.reported[before:] == [("its monitor is busy", False)]
    del bench.monitors.faults["tenant-a"]
    bench.clock.now_s += 8 * RETRY_S
    await bench.settle()
    assert (bench.sets, bench.part.troubles) == ([("tenant-a", False)], {})


async def test_a_guest_that_hangs_costs_a_thread_and_is_known_when_it_answers_after_all() -> None:
    bench = Bench(guest("tenant-a"), guest("tenant-b"))
    hang = bench.monitors.hang["tenant-a"] = threading.Event()
    try:
        await bench.settle()
        assert (bench.sets, bench.exposed[-1]) == ([("tenant-b", False)], ("tenant-a",))
        bench.clock.now_s += MAX_RETRY_S
        await bench.settle()
        assert len(bench.part.calls.hanging) == 1, "it is not asked again meanwhile"
    finally:
        hang.set()
    await bench.part.seen.wait()
    await bench.settle()
    assert (bench.sets, bench.exposed[-1], bench.part.troubles) == ([("tenant-a", False)], (), {})
    assert bench.switched == [("unmerged tenant-b", "private"), ("unmerged tenant-a", "private")]


async def test_a_guest_that_hangs_and_then_fails_is_tried_again_as_one_that_fails() -> None:
    bench = Bench(guest("tenant-a"))
    hang = bench.monitors.hang["tenant-a"] = threading.Event()
    try:
        await bench.settle()
        bench.monitors.refuses = MonitorFailed("its monitor is busy")
        bench.part.seen.clear()
    finally:
        hang.set()
    await bench.part.seen.wait()
    await bench.settle()
    assert (bench.reported[-1], bench.part.calls.hanging) == (("its monitor is busy", True), {})
    bench.monitors.refuses = None
    bench.clock.now_s += 2 * RETRY_S
    await bench.settle()
    assert (bench.sets, bench.part.troubles) == ([("tenant-a", False)], {})


async def test_a_guest_whose_process_is_hidden_is_told() -> None:
    bench = Bench(guest("tenant-a"))
    bench.facts.runs = {"uuid of tenant-a": None}
    await bench.settle()
    assert bench.reported == [("its process was not found", True)]
    bench.facts.runs = {}
    bench.clock.now_s += RETRY_S
    await bench.settle()
    assert bench.sets == [("tenant-a", False)]


async def test_a_guest_that_vanishes_is_no_error() -> None:
    bench = Bench(guest("tenant-a"))
    bench.monitors.guests["uuid of tenant-a"] = merging_guest(64)
    bench.reader.see(bench.running, again=True)
    bench.libvirt.xml["uuid of tenant-a"] = PLAIN
    await bench.reader.read_when_due()
    bench.monitors.guests.clear()
    await bench.part.switch_when_due()
    assert (bench.reported, bench.choices.kept) == ([], {})
    await bench.settle(guest("other"))
    assert bench.part.troubles == {}


async def test_a_guest_whose_copies_do_not_fit_stays_and_is_unmerged_once_there_is_room() -> None:
    bench = Bench(replace(guest("tenant-a"), rss_kib=300 * 1024))
    bench.facts.counters = {"pages_shared": 100_000, "pages_sharing": 100_000}
    bench.facts.memory = replace(bench.facts.memory, available_kib=200 * 1024)
    await bench.settle()
    assert bench.reported == [("unmerging guest 'tenant-a' may need 100.0 MiB more memory than is available", True)]
    bench.facts.memory = replace(bench.facts.memory, available_kib=300 * 1024)
    bench.clock.now_s += RETRY_S
    await bench.settle()
    assert bench.sets == [("tenant-a", False)]


async def test_qemu_9_1_ignores_the_switch_so_it_is_not_tried() -> None:
    bench = Bench(guest("tenant-a"))
    bench.monitors.guests["uuid of tenant-a"] = merging_guest(64, qemu=(9, 1, 0))
    await bench.settle()
    assert (bench.sets, bench.choices.kept) == ([], {})
    assert bench.reported == [("QEMU 9.1.0 ignores it", True)]


async def test_what_the_kernel_has_not_done_is_told_and_tried_again() -> None:
    bench = Bench(guest("tenant-a"))
    bench.facts.mergeable = lambda: MergeableMemory(mappings_kib=(64 * 1024, 16), merged_kib=None)
    await bench.settle()
    out = [("tenant-a", False), ("tenant-a", True), ("tenant-a", False)]
    assert bench.sets == out, "QEMU does nothing for a value that it has"
    assert bench.reported == [("QEMU 7.2.22 has taken it, but the kernel still merges guest 'tenant-a'", True)]
    assert bench.exposed[-1] == ("tenant-a",)
    bench.facts.mergeable = lambda: MergeableMemory(mappings_kib=(16,), merged_kib=None)
    bench.clock.now_s += RETRY_S
    await bench.settle()
    assert (bench.sets, bench.part.troubles) == ([("tenant-a", False)], {})


async def test_a_lost_connection_and_another_machine_and_a_full_disk_are_survived() -> None:
    bench = Bench(guest("tenant-a"))
    bench.choices.is_full = True
    await bench.settle()
    assert (bench.sets, bench.exposed[-1]) == ([], ("tenant-a",))
    bench.choices.is_full = False
    bench.monitors.faults["tenant-a"] = LibvirtUnreachable("gone")
    bench.part.see(again=True)
    await bench.settle()
    bench.monitor = None
    await bench.settle()
    bench.monitors.faults.clear()
    bench.monitor = bench.monitors
    bench.part.connect(None)
    await bench.settle()
    assert bench.sets == [], "of another machine's guests nobody here knows the processes"
    bench.part.connect(ThisHost(bench.choices, lambda: bench.facts))
    await bench.settle()
    assert bench.sets == [("tenant-a", False)]
