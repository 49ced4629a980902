"""What memory there is to be short of: pools of huge pages, ZFS's cache, control groups' limits, swap.

One host's figures for the law, for `virtksm headroom` and for `virtksm doctor`, as a pass reads them: from files.
"""

from collections.abc import Mapping

import pytest

from tests.fake_proc import FakeProc
from tests.fakes import FakeClock, FakeHypervisor, fake_cycle
from tests.lab.healthy_host import with_files
from virtksm.cli.headroom import find_memory_notes, read_bound
from virtksm.config.schema import AdaptiveParams, Config
from virtksm.doctor.checks import examine
from virtksm.doctor.finding import Verdict
from virtksm.guests.headroom import Headroom, find_headroom, find_node_rooms, find_reserve_kib, host_of
from virtksm.guests.survey import survey
from virtksm.host.local_facts import ProcFacts
from virtksm.host.memory_limits import AGAIN_S, ARCSTATS
from virtksm.model.decision import Trigger, Triggers
from virtksm.model.snapshot import Guest, HostMemory, NodeMemory, Snapshot, Traits
from virtksm.policy.adaptive import AdaptivePolicy
from virtksm.policy.adaptive.engage import Need, judge_need
from virtksm.policy.adaptive.state import AdaptiveState
from virtksm.policy.ksmtuned import KsmtunedPolicy
from virtksm.policy.observe import ObservePolicy
from virtksm.tuning.sense import sense, with_bound
from virtksm.values import EMPTY, replace

GIB = 1024 * 1024
TIMER = Triggers(kinds=frozenset({Trigger.TIMER}))
MEMINFO = (
    "MemTotal: {total} kB\nMemFree: {available} kB\nMemAvailable: {available} kB\nBuffers: 0 kB\nCached: 0 kB\n"
    "SwapTotal: {swap} kB\nSwapFree: {swap} kB\nHugetlb: {pool} kB\n"
)
NODE_MEMINFO = (
    "Node {0} MemTotal:       {1} kB\nNode {0} MemFree:        {2} kB\nNode {0} MemUsed:         0 kB\n"
    "Node {0} SwapCached:            0 kB\nNode {0} Active:           9 kB\nNode {0} Active(file):     {3} kB\n"
    "Node {0} Inactive(file):  {4} kB\nNode {0} SReclaimable:     {5} kB\nNode {0} HugePages_Total:     0\n"
)
ARC = "9 1 0x01 147 39984 4106219243 9\nname type data\nhits 4 77\nsize 4 {size}\nc 4 1\nc_min 4 {low}\nmru_size 4 5\n"


class Place:
    """A host in a folder, for whoever reads it: a pass, a survey, the doctor."""

    def __init__(self, proc: FakeProc) -> None:
        self.proc, self.folder = proc, proc.folder.parent
        self.clock = FakeClock()
        self.facts = ProcFacts(
            self.clock,
            sys_ksm=str(self.folder / "ksm"),
            sys_cgroup=str(self.folder / "sys/fs/cgroup"),
            sys_node=str(self.folder / "sys/devices/system/node"),
        )
        self.hypervisor = FakeHypervisor()
        self._files: dict[str, str] = {}

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
        self._files[name] = text

    def memory(
        self, *, total_gib: float, available_gib: float, pool_gib: float = 0.0, swap_gib: float = 0.0, more: str = ""
    ) -> None:
        kib = {"total": total_gib, "available": available_gib, "pool": pool_gib, "swap": swap_gib}
        self.write("proc/meminfo", MEMINFO.format(**{name: int(gib * GIB) for name, gib in kib.items()}) + more)

    def guests(
        self, count: int, *, gib: float, rss_gib: float, pool_gib: float = 0.0, swapped_gib: float = 0.0
    ) -> None:
        names = [f"g{number}" for number in range(count)]
        xml = f"<domain><memory>{int(gib * GIB)}</memory></domain>"
        running = tuple(Guest(uuid=name, name=name, domain_id=1, max_kib=int(gib * GIB)) for name in names)
        self.hypervisor = FakeHypervisor(running=running, xml=dict.fromkeys(names, xml))
        for pid, name in enumerate(names, 100):
            self.proc.qemu(pid, name, mib=int(rss_gib * 1024))
            amounts = f"VmSwap:\t {int(swapped_gib * GIB)} kB\nHugetlbPages:\t {int(pool_gib * GIB)} kB\n"
            self.proc.write(pid, "status", f"Uid:\t0\t0\t0\t0\n{amounts}")

    def read(self) -> Snapshot:
        return sense(self.hypervisor, self.facts, 1.0, with_max=True)

    def node(self, node: int, *, total_gib: float, free_gib: float, cache_gib: float = 0.0, pool_gib: int = 0) -> None:
        """Write a node's meminfo, in the order and form of Linux 6.18; a third of the cache is slab that can go."""
        kib = [int(gib * GIB) for gib in (total_gib, free_gib, cache_gib / 2, cache_gib / 3, cache_gib / 3)]
        self.write(f"sys/devices/system/node/node{node}/meminfo", NODE_MEMINFO.format(node, *kib))
        pools = f"sys/devices/system/node/node{node}/hugepages"
        self.write(f"{pools}/hugepages-1048576kB/nr_hugepages", f"{pool_gib}\n")
        self.write(f"{pools}/hugepages-2048kB/nr_hugepages", "0\n")

    def need(
        self,
        *,
        was_engaged: bool = False,
        params: AdaptiveParams | None = None,
        bound_to: Mapping[str, tuple[tuple[int, ...], ...]] = EMPTY,
    ) -> Need:
        traits = {key: Traits(bound_to=nodes) for key, nodes in bound_to.items()}
        snapshot = with_bound(self.read(), self.facts, traits)
        return judge_need(snapshot, params or AdaptiveParams(), was_engaged=was_engaged)

    def headroom(self) -> tuple[Headroom, list[str]]:
        found, memory = survey(self.hypervisor, self.facts), self.facts.host_memory()
        host = host_of(memory, found.ksm, Config())
        return find_headroom([one.need for one in found.guests], host), find_memory_notes(memory)

    def doctor(self, check: str, **more: str) -> tuple[Verdict, str]:
        (found,) = (one for one in examine(with_files(**{**self._files, **more})) if one.check == check)
        return found.verdict, found.detail


@pytest.fixture
def place(proc: FakeProc) -> Place:
    return Place(proc)


def pool(place: Place) -> None:
    """reports.md B03: of 256 GiB 200 are a pool, 12 guests of 16 GiB live in it."""
    place.memory(total_gib=256, available_gib=50, pool_gib=200)
    place.guests(12, gib=16, rss_gib=0.2, pool_gib=16)


def arc(place: Place) -> None:
    """reports.md B04: of 128 GiB 64 are ZFS's cache, four guests of 8 GiB; the cache's minimum is 1/32 of memory."""
    place.memory(total_gib=128, available_gib=23)
    place.write(f"proc/{ARCSTATS}", ARC.format(size=64 * GIB * 1024, low=4 * GIB * 1024))
    place.guests(4, gib=8, rss_gib=8)


def limit(place: Place, *, high_gib: float, used_gib: float, cache_gib: float, folder: str = "machine.slice") -> None:
    group = f"sys/fs/cgroup/{folder}"
    place.write(f"{group}/memory.max", "max\n")
    place.write(f"{group}/memory.high", f"{int(high_gib * 2**30)}\n")
    place.write(f"{group}/memory.current", f"{int((used_gib + cache_gib) * 2**30)}\n")
    half = int(cache_gib * 2**29)
    place.write(f"{group}/memory.stat", f"anon 5\nfile 7\ninactive_file {half}\nactive_file {half}\nworkingset_x 9\n")


def test_a_pool_of_huge_pages_is_no_memory_to_be_short_of_and_its_guests_cannot_grow(place: Place) -> None:
    pool(place)
    need = place.need()
    assert (need.engaged, need.pressure) == (False, 0.0)
    assert need.why == "memory is not short: 50.0 of 56.0 GiB available, guests can grow to 2.4 GiB"
    headroom, notes = place.headroom()
    assert headroom.growth_kib == 0
    assert headroom.room_kib.safe == headroom.room_kib.at_ratio == 50 * GIB - 56 * GIB // 5
    assert notes == ["200.0 GiB of the host's 256.0 GiB are a pool of huge pages: neither total nor available"]
    assert place.doctor("huge_page_pool") == ("PASS", "200.0 GiB, 0.0 MiB unused: guests outside of it share 56.0 GiB")


def test_a_host_that_is_all_pool_is_not_half_short_of_memory(place: Place) -> None:
    """core.md B16: 900 of 1024 GiB are the pool, 80 of the other 124 are available; and without any guest, 22 of 56."""
    for total_gib, pool_gib, available_gib in ((1024, 900, 80), (256, 200, 22)):
        place.memory(total_gib=total_gib, available_gib=available_gib, pool_gib=pool_gib)
        assert (place.need().engaged, place.need().pressure) == (False, 0.0)


def test_guests_beside_the_pool_grow_into_what_is_left(place: Place) -> None:
    pool(place)
    place.guests(12, gib=16, rss_gib=2, pool_gib=8)  # of a guest one NUMA cell may be in the pool
    assert "guests can grow to 96.0 GiB" in place.need().why
    assert place.need().engaged
    assert place.headroom()[0].growth_kib == 12 * 6 * GIB


def test_a_pool_is_read_once_for_a_guest_and_again_after_memory_was_plugged(place: Place) -> None:
    pool(place)
    (first, *_) = place.read().guests
    assert first.pool_kib == 16 * GIB
    place.guests(12, gib=16, rss_gib=0.2, pool_gib=1)
    assert place.read().guests[0].pool_kib == 16 * GIB, "kept"
    place.guests(12, gib=24, rss_gib=0.2, pool_gib=24)
    place.hypervisor.forget_max()
    assert place.read().guests[0].pool_kib == 24 * GIB
    place.memory(total_gib=256, available_gib=50)
    place.guests(1, gib=32, rss_gib=1, pool_gib=3)
    assert place.read().guests[0].pool_kib is None, "there is no pool: nobody is asked"


def test_zfs_gives_its_cache_back_down_to_its_minimum(place: Place) -> None:
    arc(place)
    need = place.need()
    assert (need.engaged, need.pressure) == (False, 0.0)
    assert need.why.startswith("memory is not short: 83.0 of 128.0 GiB available")
    headroom, notes = place.headroom()
    assert headroom.room_kib.safe == 83 * GIB - 128 * GIB // 5
    assert notes == ["ZFS's cache gives back up to 60.0 GiB: they count as available"]
    verdict, detail = place.doctor("zfs_cache")
    assert (verdict, detail) == ("PASS", "up to 60.0 GiB come back when memory is short, and count as available")
    assert place.doctor("headroom")[1].endswith("83.0 GiB are available")
    place.write(f"proc/{ARCSTATS}", ARC.format(size=GIB * 1024, low=4 * GIB * 1024))
    assert place.need().engaged, "a cache below its minimum gives nothing back"
    assert place.need().pressure > 0


def test_the_limit_of_the_guests_group_is_all_there_is_for_them(place: Place) -> None:
    place.memory(total_gib=256, available_gib=200)
    place.guests(1, gib=8, rss_gib=8)
    limit(place, high_gib=100, used_gib=90, cache_gib=5)
    memory = place.read().host
    assert (memory.limit_kib, memory.limit_left_kib) == (100 * GIB, 10 * GIB), "page cache can go"
    assert place.need().engaged
    assert place.need().pressure == 0.5
    headroom, notes = place.headroom()
    assert headroom.room_kib.unmerged == 0
    assert notes == ["the guests' control group is limited to 100.0 GiB"]
    assert place.doctor("memory_limits") == ("PASS", "guests may have 100.0 GiB together, 10.0 GiB of it are left")
    limit(place, high_gib=100, used_gib=20, cache_gib=5)
    assert not place.need().engaged


def test_limits_are_sought_anew_once_a_minute_and_a_containers_own_counts_where_guests_are_in_it(place: Place) -> None:
    place.memory(total_gib=256, available_gib=200)
    limit(place, high_gib=1, used_gib=0.5, cache_gib=0, folder=".")
    assert place.read().host.limit_kib is None, "the agent's own container, while the guests are elsewhere"
    limit(place, high_gib=64, used_gib=1, cache_gib=0)
    assert place.read().host.limit_kib is None, "not yet"
    place.clock.now_s += AGAIN_S
    assert place.read().host.limit_kib == GIB, "the container around the guests is tighter"


def test_ksmtuned_goes_by_the_whole_host_as_the_script_does(place: Place) -> None:
    pool(place)
    seen = place.read()
    bare = replace(
        seen, host=replace(seen.host, hugetlb_kib=None), guests=tuple(replace(g, pool_kib=None) for g in seen.guests)
    )
    policy = KsmtunedPolicy(params=Config().ksmtuned)
    assert policy.decide(seen, policy.first_state(seen), TIMER) == policy.decide(bare, policy.first_state(bare), TIMER)
    memory = HostMemory(total_kib=256 * GIB, free_kib=0, buffers_kib=0, cached_kib=0, hugetlb_kib=200 * GIB)
    assert find_reserve_kib(Config(policy="ksmtuned"), memory) == 256 * GIB // 5


def test_memory_in_swap_comes_back(place: Place) -> None:
    """reports.md B14: six guests of 16 GiB hold 4 each, as the rest of them is in swap."""
    place.memory(total_gib=64, available_gib=36)
    place.guests(6, gib=16, rss_gib=4, swapped_gib=12)
    assert place.need().engaged
    headroom, _ = place.headroom()
    assert (headroom.growth_kib, headroom.swapped_kib) == (72 * GIB, 72 * GIB)
    seen = survey(place.hypervisor, place.facts).guests
    assert [one.swapped_kib for one in seen] == [12 * GIB] * 6


def test_swap_on_zram_is_memory_and_takes_none_of_what_is_missing(place: Place) -> None:
    """A host of 24 GiB with zram-generator's default, half of it at most 4 GiB, and 1 GiB of swap on a disk."""
    place.memory(total_gib=24, available_gib=20, swap_gib=5)
    swaps = f"/dev/zram0   partition\t{4 * GIB}\t\t{GIB // 4}\t\t100\n/dev/sda2   partition\t{GIB}\t\t0\t\t-2\n"
    place.write("proc/swaps", f"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n{swaps}")
    place.guests(2, gib=8, rss_gib=8)
    memory = place.read().host
    assert (memory.swap_free_kib, memory.spare_swap_kib) == (5 * GIB, 5 * GIB // 4)
    assert place.headroom()[1] == [
        "3.8 GiB of the free swap do not count: zram is memory, and the guests' group may limit their swap"
    ]
    merged = {"sys/kernel/mm/ksm/pages_sharing": f"{21 * GIB // 4}\n"}
    assert place.doctor("headroom", **merged) == (
        "WARN",
        "unmerging takes up to 21.0 GiB, 20.0 GiB are available: 1.0 GiB would go to swap",
    )
    merged = {"sys/kernel/mm/ksm/pages_sharing": f"{22 * GIB // 4}\n"}
    assert place.doctor("headroom", **merged)[0] == "FAIL", "zram would have to hold it, in memory"


def test_the_guests_group_may_have_no_swap(place: Place) -> None:
    place.memory(total_gib=24, available_gib=20, swap_gib=8)
    limit(place, high_gib=100, used_gib=4, cache_gib=0)
    assert place.read().host.spare_swap_kib == 8 * GIB
    place.write("sys/fs/cgroup/machine.slice/memory.swap.max", f"{3 * 2**30}\n")
    place.write("sys/fs/cgroup/machine.slice/memory.swap.current", f"{2**30}\n")
    place.clock.now_s += AGAIN_S
    assert place.read().host.spare_swap_kib == 2 * GIB
    place.write("sys/fs/cgroup/machine.slice/memory.swap.max", "0\n")
    merged = {"sys/kernel/mm/ksm/pages_sharing": f"{21 * GIB // 4}\n"}
    verdict, detail = place.doctor("swap", **merged)
    assert (verdict, detail.partition(",")[0]) == ("WARN", "8.0 GiB of 8.0 GiB are free")
    assert place.doctor("headroom", **merged)[0] == "FAIL"


def test_no_room_is_larger_than_what_the_kernel_still_promises(place: Place) -> None:
    """The laboratory's own figures, but for 4 GiB less that processes have asked for, with vm.overcommit_memory = 2."""
    commits = "CommitLimit:    12342044 kB\nCommitted_AS:    9622996 kB\n"
    place.memory(total_gib=24, available_gib=19, more=commits)
    place.guests(2, gib=2, rss_gib=2)
    free, _ = place.headroom()
    assert free.room_kib.safe == free.room_kib.at_ratio == 19 * GIB - 24 * GIB // 5
    assert place.doctor("overcommit")[0] == "PASS"
    place.write("proc/sys/vm/overcommit_memory", "2\n")
    place.clock.now_s += AGAIN_S
    bounded, notes = place.headroom()
    assert bounded.room_kib.safe == bounded.room_kib.unmerged == bounded.room_kib.at_ratio == 12342044 - 9622996
    assert notes == [
        "vm.overcommit_memory is 2: new guests get 2.6 GiB at most (CommitLimit less Committed_AS), whatever merges"
    ]
    assert place.need() == Need(
        engaged=False, pressure=0.0, why="memory is not short: 19.0 of 24.0 GiB available, guests can grow to 4.0 GiB"
    ), "merging would not help"
    assert place.doctor("overcommit") == (
        "WARN",
        "vm.overcommit_memory is 2: new guests get 2.6 GiB at most, whatever merges; 19.0 GiB are available",
    )
    assert place.doctor("headroom")[0] == "PASS", "unmerging asks for nothing that was not promised before"
    place.memory(total_gib=24, available_gib=19, more=commits.replace("9622996", "13817300"))
    assert place.read().host.commit_left_kib == 0


def test_version_1_of_control_groups_is_named_and_not_read(place: Place) -> None:
    place.memory(total_gib=256, available_gib=200)
    group = "sys/fs/cgroup/memory/machine.slice"
    place.write(f"{group}/memory.limit_in_bytes", "9223372036854771712\n")
    assert place.doctor("memory_limits")[0] == "PASS", "what it is without a limit"
    place.write(f"{group}/memory.limit_in_bytes", f"{100 * 2**30}\n")
    assert place.doctor("memory_limits") == (
        "WARN",
        "guests may have 100.0 GiB together, which virtksm does not see: control groups are of version 1",
    )
    assert place.read().host.limit_kib is None


def test_guests_that_are_bound_to_a_node_are_short_where_the_host_is_not(place: Place) -> None:
    """128 GiB on two nodes, of which the first is nearly full: a strict guest there gets none of the other's."""
    place.memory(total_gib=128, available_gib=62)
    place.guests(2, gib=16, rss_gib=16)
    place.node(0, total_gib=64, free_gib=2, cache_gib=3)
    place.node(1, total_gib=64, free_gib=57)
    short, on_0, on_1 = AdaptiveParams(engage="short"), {"g0/1": ((0,),)}, {"g0/1": ((1,),)}
    free = Need(engaged=False, pressure=0.0, why="memory is not short: 62.0 of 128.0 GiB available")
    assert place.need(params=short) == place.need(params=short, bound_to=on_1) == free
    assert place.need(params=short, bound_to={"g0/1": ((0, 1),)}) == free, "to both: to none"
    assert place.need(params=short, bound_to={"g0/1": ((7,),)}) == free, "no such node"
    need = place.need(params=short, bound_to=on_0)
    assert need.engaged
    assert need.pressure == pytest.approx(1 - 5 / (64 / 5), rel=1e-3)
    assert need.where == "memory is short on NUMA node 0: 5.0 of 64.0 GiB available"
    place.write(f"proc/{ARCSTATS}", ARC.format(size=24 * GIB * 1024, low=4 * GIB * 1024))
    place.clock.now_s += AGAIN_S
    assert not place.need(params=short, bound_to=on_0).engaged, "half of ZFS's cache is on the node, too: 10 GiB"
    place.write(f"proc/{ARCSTATS}", "")
    place.node(0, total_gib=64, free_gib=2, cache_gib=3, pool_gib=40)
    assert place.need(params=short, bound_to=on_0) == free, "most of the node is a pool: 5 of 24 GiB are available"


def test_a_pass_goes_by_the_nodes_that_the_agent_has_read_of(place: Place) -> None:
    place.memory(total_gib=128, available_gib=62)
    place.guests(2, gib=16, rss_gib=16)
    place.node(0, total_gib=64, free_gib=2)
    policy = AdaptivePolicy(params=AdaptiveParams(engage="short"))
    cycle = fake_cycle(hypervisor=place.hypervisor, local=place.facts, policy=policy, clock=place.clock)
    assert cycle.run(TIMER).decision.reason.rule == "disengaged"
    cycle.tenure.notes.traits["g0/1"] = Traits(bound_to=((0,),))
    report = cycle.run(TIMER)
    assert report.decision.reason.rule != "disengaged"
    assert report.snapshot.bound == (
        NodeMemory(
            usable_kib=64 * GIB,
            available_kib=2 * GIB,
            potential_kib=report.snapshot.guests[0].potential_kib,
            nodes=(0,),
        ),
    )
    short_there = "; memory is short on NUMA node 0: 2.0 of 64.0 GiB available"
    assert report.decision.reason.text.endswith(short_there)
    assert not report.decision.reason.text.startswith(short_there), "beside what is done about it"
    place.hypervisor.running = place.hypervisor.running[1:]
    assert "NUMA" not in cycle.run(TIMER).decision.reason.text


def test_the_reason_names_no_node_where_the_host_as_a_whole_is_as_short_or_nothing_is_done(place: Place) -> None:
    place.memory(total_gib=128, available_gib=2)
    place.guests(2, gib=16, rss_gib=16)
    place.node(0, total_gib=64, free_gib=1)
    place.node(1, total_gib=64, free_gib=0.5)
    for node, named in ((0, False), (1, True)):
        need = place.need(bound_to={"g0/1": ((node,),)})
        assert (need.engaged, bool(need.where)) == (True, named), "the node is shorter than the host"
    traits = {"g0/1": Traits(bound_to=((1,), (0, 1)))}
    snapshot = with_bound(place.read(), place.facts, traits)
    for policy in (AdaptivePolicy, ObservePolicy):
        for engage, run, named in (("auto", 1, True), ("always", 1, True), ("never", 1, False), ("auto", 0, False)):
            seen = replace(snapshot, ksm=replace(snapshot.ksm, run=run))
            decision, _ = policy(replace(AdaptiveParams(), engage=engage)).decide(seen, AdaptiveState(), TIMER)
            there = "memory is short on NUMA node 1: 512.0 MiB of 64.0 GiB available"
            assert decision.reason.text.endswith(f"; {there}") is named, decision.reason.text
    place.memory(total_gib=128, available_gib=62)
    need = place.need(bound_to={"g0/1": ((0, 1),)})
    assert need.where == "memory is short on NUMA nodes 0, 1: 1.5 of 128.0 GiB available"


def test_guests_that_are_bound_to_a_node_may_grow_beyond_it(place: Place) -> None:
    place.memory(total_gib=128, available_gib=120)
    place.guests(4, gib=16, rss_gib=1)
    for node in (0, 1):
        place.node(node, total_gib=64, free_gib=60)
    everywhere = place.need()
    assert not everywhere.engaged
    need = place.need(bound_to={f"g{number}/1": ((0,),) for number in range(4)})
    assert need.engaged, "64 GiB, and the reserve"
    assert need.where == "memory may be short on NUMA node 0: guests can grow to 64.0 GiB there"
    assert place.need(bound_to={f"g{number}/1": ((number % 2,),) for number in range(4)}) == everywhere
    assert place.need(bound_to={f"g{number}/1": ((0,), (1,)) for number in range(4)}) == everywhere, "half on each"


def test_a_node_that_guests_are_bound_to_has_a_room(place: Place) -> None:
    """128 GiB on two nodes; of the guests on the first, which is nearly full, each may grow by 4 GiB."""
    place.memory(total_gib=128, available_gib=79)
    place.guests(3, gib=16, rss_gib=12)
    for name, nodes in (("g0", "0"), ("g1", "0"), ("g2", "0-1")):
        numatune = f"<numatune><memory mode='strict' nodeset='{nodes}'/></numatune>"
        place.hypervisor.xml[name] = place.hypervisor.xml[name].replace("</domain>", f"{numatune}</domain>")
    place.node(0, total_gib=64, free_gib=22)
    place.node(1, total_gib=64, free_gib=57)
    found, memory = survey(place.hypervisor, place.facts), place.facts.host_memory()
    needs = [one.need for one in found.guests]
    bound = read_bound(found, memory, place.facts)
    rooms = find_node_rooms(needs, bound, Config(), unmerging_kib=GIB, safe_kib=40 * GIB)
    assert [(one.nodes, one.safe_kib / GIB) for one in rooms] == [
        ((0,), pytest.approx(22 - 0.2 * 64 - 2 * 4 - 1, abs=0.01)),
        ((0, 1), 40.0),
    ]
    for name in ("g0", "g1", "g2"):
        place.hypervisor.xml[name] = place.hypervisor.xml[name].replace("strict", "preferred")
    assert read_bound(survey(place.hypervisor, place.facts), memory, place.facts) == {}


def test_engage_short_goes_by_available_memory_alone(place: Place) -> None:
    """reports.md B16: 20 guests may have 32 GiB each and hold 2; 212 of 256 GiB are available."""
    place.memory(total_gib=256, available_gib=212)
    place.guests(20, gib=32, rss_gib=2)
    short = AdaptiveParams(engage="short")
    assert place.need().engaged, "auto: they may grow to 640 GiB"
    assert place.need(params=short) == Need(
        engaged=False, pressure=0.0, why="memory is not short: 212.0 of 256.0 GiB available"
    )
    assert not AdaptivePolicy(params=short).wants_maxima, "a call for each new guest is saved"
    place.memory(total_gib=256, available_gib=50)
    assert place.need(params=short).engaged
    place.memory(total_gib=256, available_gib=60)
    assert [place.need(params=short, was_engaged=was).engaged for was in (False, True)] == [False, True]


def test_a_step_of_retune_direct_leaves_a_host_with_a_pool_alone(place: Place) -> None:
    pool(place)
    decision, _ = AdaptivePolicy(params=AdaptiveParams()).decide(place.read(), AdaptiveState(), TIMER)
    assert decision.reason.rule == "disengaged"
