"""What huge pages gave back, for any sequence of snapshots: bounded by what was split and by what guests lack."""

import json
from dataclasses import dataclass, field
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import HOST
from virtksm.model.snapshot import Guest, KsmState, Settings, Snapshot, Source
from virtksm.tuning.freed import Freed, count_freed
from virtksm.tuning.sense import with_estimates
from virtksm.values import build, dump, replace

HUGE_PAGE_KIB = 2048
grown_kib = st.none() | st.integers(-(2**24), 2**24)
"""By how much a guest's resident memory grows; None: it cannot be read in this pass."""


@dataclass
class World:
    """A machine as far as the estimate knows it, and the witnesses of its bounds."""

    split: int = 0
    underused: int = 0
    huge_faults: int = 0
    scanned: int = 0
    zero_pages: int = 0
    rss_kib: dict[str, int] = field(default_factory=dict)
    peak_kib: dict[str, int] = field(default_factory=dict)

    def snapshot(self, unread: set[str], *, swap_free_kib: int | None = None, pages_to_scan: int = 100) -> Snapshot:
        return Snapshot(
            taken_s=0.0,
            source=Source.LOCAL,
            host=replace(HOST, swap_free_kib=swap_free_kib),
            ksm=KsmState(
                settings=Settings(pages_to_scan=pages_to_scan, sleep_millisecs=20),
                pages_scanned=self.scanned,
                ksm_zero_pages=self.zero_pages,
                thp_fault_alloc=self.huge_faults,
                thp_split_page=self.split,
                thp_underused_split_page=self.underused,
            ),
            guests=tuple(
                Guest(uuid=name, name=name, rss_kib=None if name in unread else kib)
                for name, kib in self.rss_kib.items()
            ),
        )


class Step(NamedTuple):
    """What happens between two passes, and what the second sees."""

    grown_kib: dict[str, int | None]
    stops: set[str]
    split: int
    underused: int
    huge_faults: int
    scanned: int
    zero_pages: int
    swap_free_kib: int | None
    pages_to_scan: int
    reboots: bool
    tells: bool


steps = st.lists(
    st.builds(
        Step,
        grown_kib=st.dictionaries(st.sampled_from("abc"), grown_kib),
        stops=st.sets(st.sampled_from("abc"), max_size=1),
        split=st.integers(0, 5000),
        underused=st.integers(0, 100),
        huge_faults=st.just(0) | st.integers(0, 5000),
        scanned=st.integers(0, 10**6),
        zero_pages=st.integers(0, 10**6),
        swap_free_kib=st.none() | st.integers(0, 2**24),
        pages_to_scan=st.integers(0, 1),
        reboots=st.sampled_from([False] * 9 + [True]),
        tells=st.sampled_from([True] * 9 + [False]),
    ),
    max_size=20,
)


@given(steps)
def test_it_is_never_more_than_was_split_nor_than_guests_lack_and_goes_with_them(seen: list[Step]) -> None:
    world, bound_kib = World(), 0
    freed: Freed | None = None
    for step in seen:
        if step.reboots:
            world, bound_kib = World(), 0
            freed = replace(freed, pages_scanned=10**9) if freed else None  # what it has counted until then
        world = take(world, step)
        unread = {name for name, kib in step.grown_kib.items() if kib is None}
        snapshot = world.snapshot(unread, swap_free_kib=step.swap_free_kib, pages_to_scan=step.pages_to_scan)
        if not step.tells:
            snapshot = replace(snapshot, ksm=replace(snapshot.ksm, thp_underused_split_page=None))
        bound_kib += step.split * HUGE_PAGE_KIB
        freed = count_freed(snapshot, freed)
        if freed is None:
            assert not step.tells
            assert with_estimates(snapshot, freed).ksm.freed_kib is None
            continue
        told = with_estimates(snapshot, freed)
        assert told.ksm.freed_kib == sum(guest.freed_kib for guest in told.guests) <= bound_kib
        for guest in told.guests:
            assert guest.freed_kib >= 0
            if guest.rss_kib is not None:
                had_kib = world.peak_kib[guest.uuid] + world.huge_faults * HUGE_PAGE_KIB
                assert guest.freed_kib <= had_kib - guest.rss_kib
        assert freed.kib.keys() <= {guest.key for guest in snapshot.guests}
        assert build(Freed, json.loads(json.dumps(dump(freed))), least=0, is_exact=True) == freed


def take(world: World, step: Step) -> World:
    """Return the world after a step."""
    rss_kib, peak_kib = dict(world.rss_kib), dict(world.peak_kib)
    for name, grown in step.grown_kib.items():
        rss_kib[name] = max(rss_kib.get(name, 0) + (grown or 0), 1)
        peak_kib[name] = max(peak_kib.get(name, 0), rss_kib[name])
    for name in step.stops:
        rss_kib.pop(name, None)
        peak_kib.pop(name, None)
    return replace(
        world,
        rss_kib=rss_kib,
        peak_kib=peak_kib,
        split=world.split + step.split,
        underused=world.underused + min(step.underused, step.split),
        huge_faults=world.huge_faults + step.huge_faults,
        scanned=world.scanned + step.scanned,
        zero_pages=step.zero_pages,
    )
