"""What huge pages gave back: each rule of virtksm/tuning/freed.py, from one pass to the next."""

from typing import Any

import pytest

from tests.fakes import HOST, FakeFacts, FakeHypervisor, FakeStore, TargetPolicy, fake_cycle
from virtksm.model.decision import Trigger, Triggers
from virtksm.model.snapshot import IDLE, Guest, KsmState, Settings, Snapshot, Source
from virtksm.tuning.freed import Freed, count_freed
from virtksm.tuning.sense import with_estimates
from virtksm.values import replace

MIB = 1024
SWAPPING = replace(HOST, swap_free_kib=900 * MIB)
TOLD = {
    "pages_scanned": 1000,
    "ksm_zero_pages": 0,
    "thp_fault_alloc": 5,
    "thp_split_page": 10,
    "thp_underused_split_page": 2,
}


def seen(*rss_mib: int | None, pages_to_scan: int = 100, **counters: int) -> Snapshot:
    """Return a snapshot of guests with so much resident memory; counters are what they have grown by."""
    told: dict[str, Any] = {name: value + counters.get(name, 0) for name, value in TOLD.items()}
    return Snapshot(
        taken_s=0.0,
        source=Source.LOCAL,
        host=HOST,
        ksm=KsmState(
            settings=Settings(pages_to_scan=pages_to_scan, sleep_millisecs=20), pages_shared=0, pages_sharing=0, **told
        ),
        guests=tuple(
            Guest(uuid=str(number), name="g", rss_kib=None if mib is None else mib * MIB)
            for number, mib in enumerate(rss_mib)
        ),
    )


def freed_mib(*snapshots: Snapshot) -> list[float]:
    """Return what each guest of the last snapshot has given back, pass after pass."""
    freed: Freed | None = None
    for snapshot in snapshots:
        freed = count_freed(snapshot, freed)
    return [guest.freed_kib / MIB for guest in with_estimates(snapshots[-1], freed).guests]


FULL = seen(1000, 500)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (seen(400, 500, thp_split_page=300), [600, 0]),
        (seen(400, 300, thp_split_page=400), [600, 200]),
        (seen(400, 300, thp_split_page=200), [300, 100]),  # no more than was split, shared out by the falls
        (seen(400, 500), [0, 0]),
        (seen(400, 500, thp_split_page=300, thp_underused_split_page=300), [0, 0]),  # by reclaim
        (seen(400, 500, thp_split_page=300, ksm_zero_pages=100 * 256), [500, 0]),
        (seen(400, 500, thp_split_page=300, pages_to_scan=0), [0, 0]),  # not by ksmd
        (seen(400, 500, thp_split_page=300, pages_to_scan=0, pages_scanned=1), [600, 0]),
        (seen(1000, 500, thp_split_page=300), [0, 0]),
    ],
)
def test_1_and_2_a_fall_while_ksmd_splits_is_freed_up_to_what_it_split(now: Snapshot, expected: list[float]) -> None:
    assert freed_mib(FULL, now) == expected
    assert freed_mib(FULL, now, now) == expected, "and stays so"


def test_2_what_swap_has_taken_is_not_freed() -> None:
    before, after = replace(FULL, host=replace(HOST, swap_free_kib=1000 * MIB)), seen(400, 500, thp_split_page=300)
    assert freed_mib(before, replace(after, host=SWAPPING)) == [500, 0]
    assert freed_mib(before, after) == [600, 0], "a host without swap"


@pytest.mark.parametrize(
    "taken", [{"pswpout": 100 * 256}, {"zswpout": 100 * 256}, {"pswpout": 256, "zswpout": 99 * 256}]
)
def test_2_nor_is_it_where_as_much_has_come_back_to_another_guest_meanwhile(taken: dict[str, int]) -> None:
    """Reclaim splits huge pages, too, and swap's free space is the same."""
    told = {"pswpout": 7, "zswpout": 7}
    before, after = (
        replace(
            one,
            host=SWAPPING,
            ksm=replace(one.ksm, **{name: value + more.get(name, 0) for name, value in told.items()}),
        )
        for one, more in ((FULL, {}), (seen(900, 600, thp_split_page=50), taken))
    )
    assert freed_mib(before, after) == [0, 0]


def test_3_what_a_guest_grows_by_takes_back_its_own() -> None:
    freed = seen(400, 300, thp_split_page=400)
    assert freed_mib(FULL, freed, seen(450, 300, thp_split_page=400)) == [550, 200]
    assert freed_mib(FULL, freed, seen(450, 900, thp_split_page=400)) == [550, 0]
    assert freed_mib(FULL, freed, seen(450, 900, thp_split_page=400), freed) == [550, 0], "by balloon"


def test_3_but_not_in_whole_huge_pages_that_the_guest_has_never_had_before() -> None:
    freed = seen(400, 300, thp_split_page=400)
    grown = seen(500, 300, thp_split_page=400, thp_fault_alloc=50)
    assert freed_mib(FULL, freed, grown) == [600, 200]
    assert freed_mib(FULL, freed, seen(500, 300, thp_split_page=400, thp_fault_alloc=25)) == [550, 200], "half of them"
    assert freed_mib(FULL, freed, seen(500, 300, 100, thp_split_page=400, thp_fault_alloc=50)) == [550, 200, 0], (
        "half of them are the new guest's"
    )
    fallen = seen(300, 300, thp_split_page=400, pages_to_scan=0)
    assert freed_mib(FULL, freed, fallen, grown) == [500, 200], "its balloon had given back a half"
    assert freed_mib(FULL, freed, grown, seen(400, 300, thp_split_page=400), grown) == [500, 200], "it had as much"


def test_4_what_stops_takes_its_own_along_and_what_is_unread_keeps_it() -> None:
    freed = seen(400, 300, thp_split_page=400)
    assert freed_mib(FULL, freed, seen(400, thp_split_page=400)) == [600]
    assert freed_mib(FULL, freed, seen(None, 300, thp_split_page=400)) == [600, 200]
    assert freed_mib(FULL, freed, seen(None, 300, thp_split_page=400), freed) == [600, 200]


def test_5_after_a_boot_it_begins_anew_and_where_the_kernel_does_not_tell_it_is_unknown() -> None:
    freed = seen(400, 300, thp_split_page=400)
    assert freed_mib(FULL, freed, seen(400, 300, thp_split_page=400, pages_scanned=-1)) == [0, 0]
    for lacking in ({"pages_scanned": None}, {"thp_split_page": None}, {"thp_underused_split_page": None}):
        older = replace(FULL, ksm=replace(FULL.ksm, **dict[str, Any](lacking)))
        assert count_freed(older, count_freed(FULL, None)) is None
        assert with_estimates(older, None).ksm.freed_kib is None
    assert with_estimates(FULL, count_freed(FULL, None)).ksm.freed_kib == 0


def test_saved_is_the_sum_and_unmerging_gives_back_only_what_is_ksms() -> None:
    ksm = replace(FULL.ksm, pages_shared=1, pages_sharing=256, ksm_zero_pages=512, freed_kib=4 * MIB)
    assert (ksm.shared_kib, ksm.zero_kib, ksm.freed_kib) == (MIB, 2 * MIB, 4 * MIB)
    assert (ksm.saved_kib, ksm.unmapped_kib, ksm.unmerge_kib) == (7 * MIB, 6 * MIB, 3 * MIB + 4)


def test_a_pass_keeps_it_with_the_hosts_state_for_any_policy_and_a_dry_run_does_not() -> None:
    store, facts = FakeStore(), Facts(counters={**TOLD, "pages_to_scan": 100}, rss_kib={"0": 1000 * MIB})
    hypervisor = FakeHypervisor(running=(Guest(uuid="0", name="g"),))
    cycle = fake_cycle(
        hypervisor=hypervisor, local=facts, store=store, policy=TargetPolicy(target=IDLE, next_pass_s=None)
    )
    timer = Triggers(kinds=frozenset({Trigger.TIMER}))
    assert cycle.run(timer).snapshot.ksm.freed_kib == 0
    facts.rss_kib, facts.split = {"0": 400 * MIB}, 300
    facts.counters = {**facts.counters, "pages_scanned": 2000}
    assert cycle.run(timer, dry_run=True).snapshot.ksm.freed_kib == 600 * MIB
    report = cycle.run(timer)
    assert (report.saved_kib, report.snapshot.guests[0].freed_kib) == (600 * MIB, 600 * MIB)
    assert store.state.freed is not None
    assert dict(store.state.freed.kib) == {report.snapshot.guests[0].key: 600 * MIB}
    cycle.restore()
    assert store.state.freed is not None, "what is free stays free"
    assert cycle.run(timer).saved_kib == 600 * MIB


class Facts(FakeFacts):
    """A kernel that counts split huge pages."""

    split = 0

    def vm_counters(self, *names: str) -> tuple[int | None, ...]:
        return tuple(self.split if name == "thp_split_page" else 0 for name in names)


def test_2_shares_are_rounded_down_so_that_their_sum_is_never_more_than_was_split() -> None:
    before, after = seen(100, 100, 100), seen(99, 99, 99, thp_split_page=1)
    freed = count_freed(after, count_freed(before, None))
    assert freed is not None
    assert set(freed.kib.values()) == {2048 // 3}
