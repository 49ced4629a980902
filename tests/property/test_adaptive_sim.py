"""The adaptive policy on the simulated kernel: what can merge does, in bounded time, then it rests.

The exception is what smart_scan keeps apart (docs/policies.md, Limits).
"""

from itertools import product
from statistics import mean
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bench.sim.costs import KsmdCosts
from bench.sim.driver import Event, run_fixed, run_policy
from bench.sim.host import SimHost
from bench.sim.ksmd import Ksmd
from bench.sim.least import COMMON_MIB, GAPS_S, OWN_MIB, Series
from bench.sim.plays import vain_full_scans
from bench.sim.visit import Rules
from bench.sim.works import (
    NEWCOMERS_MERGED_PAGES,
    NEWCOMERS_S,
    idle,
    little_guests,
    mixed_hour,
    mixed_may_mib,
    spoiler_day,
    spoilers,
    start_all,
)
from bench.steps import Drift, Grow, Spoil, Start, Stop
from demo.guests import PAGES_PER_MIB, PayloadGuest
from virtksm.config.schema import AdaptiveParams
from virtksm.model.snapshot import IDLE, Settings
from virtksm.policy.adaptive import AdaptivePolicy
from virtksm.policy.adaptive.full_scans import BATCH_S
from virtksm.policy.adaptive.worth import LATEST_S
from virtksm.values import replace

pytestmark = pytest.mark.timeout(600)
"""Simulated hours take seconds, and on a machine whose cores twenty others want minutes."""

ALWAYS = AdaptivePolicy(params=AdaptiveParams(engage="always"))
LAST_START_S = 60.0
UNTIL_S = 240.0
"""Settling, waiting and two full scans of a few hundred MiB take seconds; what waits longer waits for a check scan."""
CHECKED_S = 400.0
"""The first check scan comes five minutes after the last full scan."""
MEASURED_S = 720.0
"""Of a change in place, where dirty rates are measured."""
CONSTANT = 5.0
"""The worst of random series is printed by `script/bench sim` (docs/benchmarks.md)."""
MOST_FULL_SCANS = 17
"""The last of somebody else may end late, the first of a host that he has scanned may begin anywhere, then two, and
MAX_MORE_FULL_SCANS."""
MOST_PLAIN, MOST_SMART = 30, 40
"""As measured, of three little guests, without and with smart_scan, while they grow from 102 to 180 MiB.

Each pair is for the 1 to 13 MiB that have come since the one before. With smart_scan it costs a third to a half, so
that it is worth making sooner. That is not the fault that real machines showed, 44 full scans instead of 7: one a
second over the same memory, as what smart_scan had skipped was taken to be left. By the law that had it (before
4f2eb47) these guests take 203 full scans in their first three minutes, by today's 18. What is left of it is bounded:
for a guest of which half is expected to merge, and nothing does, four more full scans seek its twins among what was
skipped, each for half as much. Guests that do not grow take a pair each.
"""
STEADY = Settings(pages_to_scan=1_000_000, sleep_millisecs=1000)
TOTAL_KIB = 16 * 1024 * 1024


def new_host(*hidden: str, smart_scan: bool = False, page_kib: int = 4) -> SimHost:
    """A host without smart_scan: with it, two old pages in different phases may never meet, whoever scans.

    Of a larger page more is read, once for its checksum and once more if it merges; that was not measured.
    """
    known, more_s = KsmdCosts(), KsmdCosts().changed_s * (page_kib / 4 - 1)
    costs = replace(known, first_s=known.first_s + more_s, changed_s=known.changed_s + more_s)
    costs = replace(costs, settled_s=known.settled_s + more_s, pair_s=known.pair_s + more_s)
    costs = replace(costs, join_s=known.join_s + 2 * more_s)
    ksmd = Ksmd(rules=Rules(smart_scan=smart_scan), costs=costs)
    host = SimHost(total_kib=TOTAL_KIB, ksmd=ksmd, hidden=frozenset(hidden), page_kib=page_kib)
    host.set_parameters(dict(IDLE.items()))
    return host


@st.composite
def storms(draw: st.DrawFn, times: int = 1) -> list[Start]:
    """A few guests of up to 192 MiB, or so many times as much."""
    count = draw(st.integers(1, 5))
    return [
        Start(
            at_s=draw(st.floats(0.0, LAST_START_S)),
            guest=PayloadGuest(
                name=f"g{number}",
                memory_mib=256 * times,
                common_mib=draw(st.integers(8, 96)) * times,
                own_mib=draw(st.integers(0, 96)) * times,
                seed=number,
                slow_mib_per_s=draw(st.sampled_from([0, 20])) * times,
            ),
        )
        for number in range(count)
    ]


class Change(NamedTuple):
    """Guests whose memory merges in part, is silent for an hour, and changes in place: `pages` of each become equal."""

    events: list[Event]
    guests: int
    pages: int
    ends_s: float
    is_fast: bool
    """libvirt measures whole MiB a second."""
    smart_scan: bool


@st.composite
def changes(draw: st.DrawFn) -> Change:
    """With smart_scan guests start together: else their pages may be visited in different full scans for ever."""
    smart_scan, guests, begins_s = draw(st.booleans()), draw(st.integers(2, 5)), 3600.0
    own_mib = draw(st.sampled_from([200, 400]))
    part, for_s = draw(st.sampled_from([0.25, 0.75])), draw(st.sampled_from([130.0, 200.0]))
    spec = PayloadGuest(name="", memory_mib=512, common_mib=96, own_mib=own_mib)
    apart_s, pages_per_s = 0.0 if smart_scan else draw(st.floats(0.0, 20.0)), own_mib * PAGES_PER_MIB * part / for_s
    events: list[Event] = []
    for number in range(guests):
        one = replace(spec, name=f"g{number}", seed=number)
        events.append(Start(at_s=apart_s * number, guest=one))
        events.append(Drift(at_s=begins_s, name=one.name, pages_per_s=pages_per_s))
        events.append(Drift(at_s=begins_s + for_s, name=one.name, pages_per_s=0.0))
    pages, is_fast = int(own_mib * PAGES_PER_MIB * part), pages_per_s > 1.1 * PAGES_PER_MIB
    return Change(events, guests, pages, begins_s + for_s, is_fast, smart_scan)


def most_saved(events: list[Event], until_s: float, **how: Any) -> int:  # noqa: ANN401  # any option of new_host
    """How many pages a ksmd saves that never rests."""
    return run_fixed(new_host(**how), STEADY, events, until_s=until_s, sample_every_s=until_s).samples[-1].saved_pages


def negligible(events: list[Event], page_kib: int = 4) -> int:
    """How many pages begin no full scan: less than 1/256 of the memory."""
    return sum(one.guest.content_mib for one in events if isinstance(one, Start)) * 1024 // page_kib // 128


@pytest.mark.parametrize("page_kib", [4, 16, 64])
@settings(max_examples=5)
@given(starts=storms())
def test_all_that_can_merge_merges_in_bounded_time_and_then_ksmd_rests(page_kib: int, starts: list[Event]) -> None:
    best = most_saved(starts, UNTIL_S, page_kib=page_kib)
    ours = run_policy(new_host(page_kib=page_kib), ALWAYS, starts, until_s=UNTIL_S, sample_every_s=10.0)
    assert ours.samples[-1].saved_pages >= best - negligible(starts, page_kib)
    assert ours.samples[-1].settings.pages_to_scan == 0


@pytest.mark.parametrize(
    "hidden",
    [
        *("nothing", "cow_ksm", "pages_scanned", "pages_skipped", "ksmd_cpu_seconds", "dirty_rates"),
        *("other_processes", "local_facts"),
    ],
)
@settings(max_examples=8)
@given(change=changes(), tells_images=st.booleans())
def test_so_do_new_memory_and_content_that_becomes_equal_in_place_with_each_signal_missing(
    hidden: str, change: Change, tells_images: bool
) -> None:
    """Most of it soon where it is measured, all of it by the latest check scan.

    With smart_scan that holds of guests that start together alone (`changes`): of what comes late a third never meets.
    """
    host = new_host(hidden, smart_scan=change.smart_scan and hidden != "pages_skipped")  # either is of Linux 6.7
    host.tells_images = tells_images
    until_s = change.ends_s + LATEST_S + UNTIL_S
    ours = run_policy(host, ALWAYS, change.events, until_s=until_s, sample_every_s=10.0)
    common, equal = ((change.guests - 1) * pages for pages in (96 * PAGES_PER_MIB, change.pages))
    is_soon = change.is_fast and hidden not in ("dirty_rates", "local_facts")
    for at_s, pages in (
        (UNTIL_S, common),
        (change.ends_s + MEASURED_S, common + equal // 2 * is_soon),
        (until_s, common + equal),
    ):
        saved_pages = next(one.saved_pages for one in ours.samples if one.t_s >= at_s)
        assert saved_pages >= pages - negligible(change.events)


@pytest.mark.parametrize("smart_scan", [False, True])
@pytest.mark.parametrize("hidden", ["nothing", "dirty_rates"])
@pytest.mark.parametrize("low_s", [0.0, 21.0])
def test_guests_that_rewrite_what_has_merged_delay_nobody_else_and_cost_little(
    hidden: str, low_s: float, smart_scan: bool
) -> None:
    """Two of 256 MiB beside eight of 2 GiB; four newcomers at hour 22, merged in twice the time without the two."""
    waits_s = []
    for more in ([], spoilers(low_s=low_s)):
        host = new_host(hidden, smart_scan=smart_scan)
        host.total_kib *= 4
        ours = run_policy(host, ALWAYS, [*spoiler_day(), *more], until_s=NEWCOMERS_S + 600.0)
        merged_s = next(one.t_s for one in ours.samples if one.saved_pages >= NEWCOMERS_MERGED_PAGES)
        waits_s.append(merged_s - NEWCOMERS_S)
    alone_s, beside_s = waits_s
    assert alone_s > 0
    assert beside_s <= 2 * alone_s
    assert host.spoilt > 3
    assert ours.cpu_until(NEWCOMERS_S) - ours.cpu_until(3600.0) < 0.003 * 21 * 3600.0


@pytest.mark.parametrize("hidden", ["nothing", "dirty_rates", "cow_ksm"])
def test_what_they_rewrite_is_not_charged_to_a_guest_that_grows_beside_them(hidden: str) -> None:
    """b grows by 100 MiB every five minutes, which are equal to a's: all of it merges."""
    every_s, times = 300.0, 12
    guest = PayloadGuest(name="", memory_mib=1600, common_mib=100, own_mib=1300)
    events: list[Event] = [
        Start(at_s=0.0, guest=replace(guest, name="a")),
        Start(at_s=1.0, guest=replace(guest, name="b", own_mib=100)),
        *(Grow(at_s=number * every_s, name="b", mib=100) for number in range(1, times + 1)),
    ]
    shares, waits_s = [], []
    for more in ([], spoilers()):
        ours = run_policy(new_host(hidden), ALWAYS, [*events, *more], until_s=(times + 4) * every_s)
        told = [report.decision.reason.numbers for t_s, report in ours.passes if t_s > 2 * every_s]
        shares.append([float(one["expected_ratio"] or 0.0) for one in told if one["new_kib"]])
        saved = [(one.t_s, one.saved_pages) for one in ours.samples]
        most = [(number * every_s, (100 + 100 * number + 90) * PAGES_PER_MIB) for number in range(1, times + 1)]
        waits_s.append([next(t_s for t_s, pages in saved if pages >= least) - at_s for at_s, least in most])
    assert min(shares[1], default=1.0) >= mean(shares[0]) / 2, "or it never waits"
    assert mean(waits_s[1]) <= 2 * mean(waits_s[0])


def test_one_guest_alone_has_few_twins_and_is_scanned_little() -> None:
    lone = PayloadGuest(name="a", memory_mib=512, common_mib=224, own_mib=160)
    ours = run_policy(new_host(), ALWAYS, [Start(at_s=0.0, guest=lone)], until_s=8 * 3600.0, sample_every_s=300.0)
    assert ours.cpu_until(8 * 3600.0) < 7 * ours.cpu_until(600.0)
    assert ours.cpu_until(8 * 3600.0) < 0.00015 * 8 * 3600.0


@settings(max_examples=8)
@given(storms(times=4), st.sampled_from([5, 20, 100]), st.sampled_from([0.05, 0.5]))
@example(
    [
        Start(at_s=at_s, guest=PayloadGuest(name=f"{at_s}", memory_mib=1024, common_mib=168, own_mib=156, seed=seed))
        for seed, at_s in enumerate((25.0, 27.0, 33.0))
    ],
    20,
    0.05,
)
def test_the_same_guests_merge_no_later_with_less_memory_available(
    starts: list[Start], cpu_percent: int, available: float
) -> None:
    """With the reserve available once they have filled, and with a part of it: 90 % of what they save, but for a batch.

    Pressure has a full scan begin earlier, and may have it end at the same moment of another one.
    """
    taken_s, pressures = [], []
    for part in (1.0, available):
        host = new_host()
        reserve_kib = host.total_kib // 5
        held_kib = sum(start.guest.content_mib * 1024 + host.guest_overhead_kib for start in starts)
        host.own_kib = host.total_kib - held_kib - int(reserve_kib * part)
        params = AdaptiveParams(engage="always", cpu_percent=cpu_percent, max_cpu_percent=100, reserve_percent=20)
        ours = run_policy(host, AdaptivePolicy(params=params), starts, until_s=2 * UNTIL_S, sample_every_s=0.5)
        most = 0.9 * ours.samples[-1].saved_pages
        assert most or len(starts) == 1
        taken_s.append(next(one.t_s for one in ours.samples if one.saved_pages >= most))
        pressures.append(max(report.decision.reason.numbers["pressure"] or 0.0 for _, report in ours.passes))
    assert pressures[0] == 0 < pressures[1]
    plenty_s, scarce_s = taken_s
    assert scarce_s <= plenty_s + BATCH_S


@pytest.mark.parametrize("available_gib", [2, 5])
@pytest.mark.parametrize("mib_per_min", [0, 1, 2])
def test_one_guest_alone_is_scanned_little_on_a_host_that_it_fills(available_gib: int, mib_per_min: int) -> None:
    """58 GiB that merge nothing, and grow; pressure is 0.6 to 0.95, and a full scan takes 95 s of ksmd's: a day."""
    day_s, own_mib = 24 * 3600.0, 58 * 1024 - 48
    memory_mib = own_mib + 24 * 60 * mib_per_min + 64
    lone = PayloadGuest(name="a", memory_mib=memory_mib, own_mib=own_mib, grow_mib_per_min=mib_per_min)
    host = new_host()
    host.total_kib, host.fill_mib_per_s = (59 + available_gib) * 2**20, 500.0
    policy = AdaptivePolicy(params=AdaptiveParams())
    ours = run_policy(host, policy, [Start(at_s=0.0, guest=lone)], until_s=day_s, sample_every_s=300.0)
    told = [report.decision.reason.numbers["pressure"] or 0.0 for t_s, report in ours.passes if t_s > 3600]
    assert min(told) > 0.6
    assert max(told) > 0.8 or mib_per_min < 2
    assert host.ksmd.full_scans <= 10
    assert ours.cpu_until(day_s) < 0.011 * day_s


@pytest.mark.parametrize("low_s", [0.0, 21.0])
def test_guests_that_rewrite_what_has_merged_do_not_hide_that_others_memory_becomes_equal(low_s: float) -> None:
    """Four guests whose memory changes in place for two minutes, thrice, beside two that rewrite, or without them."""
    old = PayloadGuest(name="", memory_mib=820, common_mib=100, own_mib=700)
    ends_s = (3720.0, 14_520.0, 21_720.0)
    events: list[Event] = [Start(at_s=one, guest=replace(old, name=f"old{one}", seed=one)) for one in range(4)]
    for end_s, one in product(ends_s, range(4)):
        events += [Drift(at_s=end_s - 120.0, name=f"old{one}", pages_per_s=400.0)]
        events += [Drift(at_s=end_s, name=f"old{one}", pages_per_s=0.0)]
    shares = []
    for more in ([], spoilers(low_s=low_s)):
        ours = run_policy(new_host(), ALWAYS, [*events, *more], until_s=ends_s[-1] + 300.0, sample_every_s=10.0)
        for number, end_s in enumerate(ends_s, start=1):
            saved_pages = next(one.saved_pages for one in ours.samples if one.t_s >= end_s + 300.0)
            assert saved_pages > 3 * (100 * PAGES_PER_MIB + number * 120 * 400) * 0.9
        told = [report.decision.reason.numbers for t_s, report in ours.passes if t_s > ends_s[0]]
        shares.append(mean(float(one["changed_ratio"] or 0.0) for one in told))
    assert shares[1] >= 0.7 * shares[0], "what nobody is known to have rewritten is charged to all"


@pytest.mark.parametrize(
    ("rewrite_per_s", "smart_scan", "starts_every_s"), [(0, False, 0), (64, False, 0), (64, True, 0), (256, True, 120)]
)
def test_guests_that_rewrite_are_taken_out_and_no_others(
    rewrite_per_s: int, smart_scan: bool, starts_every_s: int
) -> None:
    """Two rewrite all at once whenever it has merged, or go on at some pages a second; two others rewrite their own.

    Where guests start all the time, there are rests in which smart_scan has left alone what was rewritten.
    """
    spoiler = PayloadGuest(name="", memory_mib=72, common_mib=64, image=77, rewrite_common_per_s=rewrite_per_s)
    old = PayloadGuest(name="", memory_mib=448, common_mib=224, own_mib=160, rewrite_per_s=256)
    names = ["bad0", "bad1"]
    events: list[Event] = [Start(at_s=one, guest=replace(old, name=f"old{one}", seed=one)) for one in range(2)]
    events += [Start(at_s=60.0 + number, guest=replace(spoiler, name=name)) for number, name in enumerate(names)]
    if not rewrite_per_s:
        events.append(Spoil(at_s=70.0, names=tuple(names)))
    for number in range(1, 118) if starts_every_s else ():
        new = PayloadGuest(name=f"new{number}", memory_mib=72, own_mib=32, seed=100 + number)
        starts_s = float(number * starts_every_s)
        events += [Start(at_s=starts_s, guest=new), Stop(at_s=starts_s + 1.5 * starts_every_s, name=new.name)]
    host, policy = new_host(), AdaptivePolicy(params=replace(ALWAYS.params, exclude_rewriters=True))
    host.ksmd.rules = Rules(smart_scan=smart_scan)
    ours = run_policy(host, policy, events, until_s=4 * 3600.0, sample_every_s=60.0)
    told = [report.rewriters for _, report in ours.passes]
    assert all(set(rewriters) <= {*names} for rewriters in told)
    assert told[-1] == names
    assert ours.samples[-1].saved_pages == 224 * PAGES_PER_MIB


@settings(max_examples=10)
@given(storms())
def test_its_scanning_is_within_a_constant_of_the_least(starts: list[Start]) -> None:
    """The least is two scans of every page; guests that come one by one, each filling slowly, cost up to four each."""
    ours = run_policy(new_host(), ALWAYS, starts, until_s=UNTIL_S, sample_every_s=10.0)
    overhead_mib = 48  # QEMU's own memory is scanned, too
    memory_pages = sum(start.guest.content_mib + overhead_mib for start in starts) * PAGES_PER_MIB
    scans_a_page = ours.samples[-1].pages_scanned / memory_pages
    assert scans_a_page <= 4 * (len(starts) + 1)


def test_guests_that_fill_side_by_side_for_long_take_one_pair_of_full_scans() -> None:
    """One after the other is full, and the rate falls to an eighth of its highest: the last ones are waited for."""
    guest = PayloadGuest(name="", memory_mib=900, common_mib=80, own_mib=600, slow_mib_per_s=40)
    starts = [Start(at_s=5.0 * one, guest=replace(guest, name=f"g{one}", seed=one + 1)) for one in range(8)]
    ours = run_policy(new_host(), ALWAYS, starts, until_s=UNTIL_S, sample_every_s=10.0)
    assert ours.samples[-1].full_scans == 2
    assert ours.samples[-1].saved_pages >= 7 * 80 * PAGES_PER_MIB


def test_steady_growth_is_merged_soon_in_few_full_scans() -> None:
    """The race's growth: at every full minute no more than 15 % behind what may merge."""
    guest = PayloadGuest(name="", memory_mib=768, common_mib=62, own_mib=62, grow_mib_per_min=64)
    starts = [Start(at_s=2.0 * one, guest=replace(guest, name=f"g{one}", seed=one // 2)) for one in range(4)]
    ours = run_policy(new_host(), ALWAYS, starts, until_s=600.0, sample_every_s=60.0)
    for minute, sample in enumerate(ours.samples[1:], start=1):
        assert sample.saved_pages >= 0.85 * (3 * 62 + 2 * 62 + 2 * 64 * minute) * PAGES_PER_MIB
    assert ours.samples[-1].full_scans <= 60  # with growth twice as expensive 72


def test_guests_that_are_gone_before_a_full_scan_pays_cost_none() -> None:
    """As on a host of builds: one a minute and a half long every half minute took 35 % of a core, to merge nothing."""
    old = PayloadGuest(name="", memory_mib=4200, common_mib=1000, own_mib=3000)
    new = PayloadGuest(name="", memory_mib=1030, own_mib=1000, seed=100)
    old_names, new_names = [f"old{number}" for number in range(8)], [f"new{number}" for number in range(110)]
    starts = start_all(new, new_names, every_s=30.0, from_s=300.0)
    stops = [Stop(at_s=one.at_s + 90.0, name=name) for one, name in zip(starts, new_names, strict=True)]
    host = idle(SimHost(total_kib=4 * TOTAL_KIB, fill_mib_per_s=400.0))
    run = run_policy(host, ALWAYS, [*start_all(old, old_names, every_s=1.0), *starts, *stops], until_s=3600.0)
    assert run.cpu_until(3600.0) - run.cpu_until(300.0) < 0.001 * 3300.0
    assert run.samples[-1].saved_pages == 7 * 1000 * PAGES_PER_MIB


def test_guests_that_cannot_merge_cost_no_scanning_and_delay_nobody() -> None:
    """One of 2 GiB of shared memory that grows by 50 MiB a second, again and again, and one with nosharepages."""
    runs = []
    for beside in (False, True):
        host = new_host()
        host.total_kib *= 4
        runs.append(run_policy(host, ALWAYS, mixed_hour(beside=beside), until_s=3600.0))
    alone, mixed = runs
    assert mixed.samples[-1].full_scans == alone.samples[-1].full_scans
    assert mixed.cpu_until(3600.0) <= 1.1 * alone.cpu_until(3600.0)
    behind_mib = []
    for run in runs:
        saved_mib = [(one.t_s, one.saved_pages / PAGES_PER_MIB) for one in run.samples if one.t_s >= 600.0]
        behind_mib.append(mean(mixed_may_mib(t_s) - saved for t_s, saved in saved_mib))
    assert 0 < behind_mib[1] <= 1.1 * behind_mib[0]


@settings(max_examples=10)
@given(
    st.lists(st.sampled_from(GAPS_S) | st.floats(1.0, 600.0), max_size=11),
    st.sampled_from(COMMON_MIB),
    st.sampled_from(OWN_MIB),
)
def test_ksmd_takes_no_more_than_a_constant_times_the_least_that_waiting_and_scanning_cost_anybody(
    gaps_s: list[float], common_mib: int, own_mib: int
) -> None:
    """The ski-rental bound of rule 4, against anybody who knows the future."""
    starts_s = [sum(gaps_s[:number]) for number in range(len(gaps_s) + 1)]
    series = Series(starts_s=starts_s, common_mib=common_mib, own_mib=own_mib)
    assert series.ksmd_s() <= CONSTANT * series.least_s()


@pytest.mark.parametrize("guests", [5, 40])
@pytest.mark.parametrize("gap_s", [6.0, 16.0, 100.0])
@pytest.mark.parametrize("tells_images", [False, True])
def test_that_constant_does_not_grow_with_the_number_of_guests(guests: int, gap_s: float, tells_images: bool) -> None:
    series = Series(starts_s=[number * gap_s for number in range(guests)], common_mib=16, own_mib=256)
    assert series.ksmd_s(tells_images=tells_images) <= CONSTANT * series.least_s()


@pytest.mark.parametrize("page_kib", [4, 16])
def test_guests_of_an_image_that_merges_much_are_scanned_sooner_and_of_one_that_does_not_later(page_kib: int) -> None:
    """Of image 1 70 % merges, of image 2 2 %. Beside four of each others start and stop, strangers first and last."""
    much = PayloadGuest(name="", memory_mib=1044, common_mib=700, own_mib=300, image=1)
    little = replace(much, common_mib=20, own_mib=980, image=2)
    guests = [*[much, little] * 4, replace(much, image=3), *[much, little] * 4, replace(much, image=4)]
    events: list[Event] = []
    for number, one in enumerate(guests):
        start = Start(at_s=1000.0 * number, guest=replace(one, name=f"g{number}", seed=number))
        events.append(start if number >= 8 else replace(start, at_s=number))
        events += [Stop(at_s=start.at_s + 700.0, name=start.guest.name)] if number >= 8 else []
    host = new_host(page_kib=page_kib)
    host.tells_images = True
    passes = run_policy(host, ALWAYS, events, until_s=18_000.0, sample_every_s=10.0).passes

    def wait_of(number: int) -> tuple[float, str]:
        """Tell how long after its start a guest's full scan began, and what the pass before said of it."""
        rules = [report.decision.reason for t_s, report in passes if t_s >= 1000.0 * number]
        begun = next(at for at, reason in enumerate(rules) if reason.rule == "full_scan")
        times = [t_s for t_s, _ in passes if t_s >= 1000.0 * number]
        return times[begun] - 1000.0 * number, rules[begun - 1].text

    *rest, (stranger_s, stranger) = (wait_of(number) for number in range(9, 18))
    (clones_s, clones), (others_s, others) = zip(*rest[0::2], strict=True), zip(*rest[1::2], strict=True)
    assert list(clones_s) == sorted(clones_s, reverse=True)
    assert list(others_s) == sorted(others_s)
    assert clones_s[-1] < stranger_s < others_s[1]
    assert stranger.endswith("50 % should merge, as is assumed at first")
    assert all(text.endswith("% should merge, as earlier guests of the image did") for text in (*clones, *others))


@settings(max_examples=10)
@given(storms(), st.booleans(), st.sampled_from([0, 1]))
def test_what_is_no_guests_merges_too_at_once_where_it_is_seen_and_by_a_check_scan_where_not(
    starts: list[Start], hides_others: bool, guests: int
) -> None:
    """An idle ksmd must not starve it: beside guests that run or without any."""
    spec = PayloadGuest(name="other", memory_mib=256, common_mib=64, own_mib=16, image=99, seed=99)
    host = new_host("other_processes" if hides_others else "nothing")
    for number in range(2):
        host.start_other(replace(spec, name=f"other{number}", seed=100 + number))
    until_s = UNTIL_S + (CHECKED_S if hides_others else 0.0)
    ours = run_policy(host, ALWAYS, starts[:guests], until_s=until_s, sample_every_s=10.0)
    assert ours.samples[-1].saved_pages >= 64 * PAGES_PER_MIB
    idle = [sample.settings.pages_to_scan == 0 for sample in ours.samples if sample.t_s >= UNTIL_S]
    assert sum(idle) >= (0.9 if hides_others else 1) * len(idle), "a check scan may be under way at any time"


@settings(max_examples=10)
@given(storms(), st.floats(0.0, 120.0), st.integers(0, 4))
def test_stopping_guests_do_no_harm(starts: list[Start], at_s: float, number: int) -> None:
    gone = starts[number % len(starts)]
    events: list[Event] = [*starts, Stop(at_s=max(at_s, gone.at_s + 1), name=gone.guest.name)]
    ours = run_policy(new_host(), ALWAYS, events, until_s=UNTIL_S, sample_every_s=10.0)
    assert ours.samples[-1].settings.pages_to_scan == 0


@pytest.mark.parametrize("hidden", [[], ["pages_scanned"], ["ksmd_cpu_seconds"], ["pages_scanned", "ksmd_cpu_seconds"]])
@settings(max_examples=15)
@given(
    storms(times=8),
    st.integers(1, 100),
    st.integers(1, 100),
    st.sampled_from([0, 30, 70, 100]),
    st.sampled_from([4, 16, 64]),
)
@example([Start(at_s=0.0, guest=PayloadGuest(name="g", memory_mib=64, common_mib=16, seed=1))], 2, 4, 0, 4)
def test_ksmd_keeps_its_budget_over_any_ten_seconds_and_minute_and_no_pressure_lifts_its_ceiling(
    hidden: list[str], starts: list[Start], cpu_percent: int, max_cpu_percent: int, reserve_percent: int, page_kib: int
) -> None:
    """They may hold one batch too many, in which pages cost twice as much as in the one before."""
    params = AdaptiveParams(
        engage="always", cpu_percent=cpu_percent, max_cpu_percent=max_cpu_percent, reserve_percent=reserve_percent
    )
    policy, host = AdaptivePolicy(params=params), new_host(*hidden, page_kib=page_kib)
    ours = run_policy(host, policy, starts, until_s=UNTIL_S, sample_every_s=0.1)
    ordinary = min(cpu_percent, max_cpu_percent)
    percent = max_cpu_percent if reserve_percent else ordinary
    budgets = [report.decision.reason.numbers["cpu_budget_percent"] or 0.0 for _, report in ours.passes]
    assert ordinary <= min(budgets) <= max(budgets) <= percent
    used_s = [sample.ksmd_cpu_seconds for sample in ours.samples]
    for window_s, most_s in ((10, 10 + 2 * BATCH_S), (60, 66)):
        most_used_s = max(after - before for before, after in zip(used_s, used_s[10 * window_s :], strict=False))
        is_estimate = "ksmd_cpu_seconds" in hidden  # a remote host's: not exact to a tenth
        assert most_used_s <= percent / 100 * most_s or (window_s == 60 and is_estimate)


@settings(max_examples=4)
@given(storms(), st.booleans(), st.sampled_from([None, "pages_skipped", "pages_scanned", "cow_ksm", "smart_scan"]))
def test_once_memory_has_stopped_changing_full_scans_end_soon_with_smart_scan_and_each_signal_missing(
    starts: list[Start], was_scanned: bool, missing: str | None
) -> None:
    """Whatever has merged: two full scans of all, and as many more as smart_scan needs to visit every old page."""
    host = SimHost(total_kib=TOTAL_KIB, hidden=frozenset([missing] if missing else []))
    host.set_parameters(dict(IDLE.items()))
    if was_scanned:  # until smart_scan skips most of the pages of guests that are there
        old = [replace(one, guest=replace(one.guest, name=f"old{one.guest.name}", slow_mib_per_s=20)) for one in starts]
        run_fixed(host, STEADY, old, until_s=2 * LAST_START_S)
        host.set_parameters(dict(IDLE.items()))
    together = [replace(one, at_s=0.0) for one in starts]
    before = host.ksmd.full_scans
    ours = run_policy(host, ALWAYS, together, until_s=UNTIL_S, sample_every_s=10.0)
    assert ours.samples[-1].settings.pages_to_scan == 0
    assert host.ksmd.full_scans - before <= MOST_FULL_SCANS


@pytest.mark.parametrize(("grows", "last_image", "most_vain"), [(False, 0, 0), (True, 0, 0), (True, 1, 4)])
def test_little_guests_take_pairs_of_full_scans_for_new_memory_and_smart_scan_makes_them_cheaper(
    grows: bool, last_image: int, most_vain: int
) -> None:
    """Measured in machines of Linux 6.12 and 7.2: 44 and 24 instead of 7, most of them over nothing."""
    runs = []
    for rules in (Rules(smart_scan=False), Rules()):
        host = idle(SimHost(total_kib=TOTAL_KIB, ksmd=Ksmd(rules=rules), guest_overhead_kib=0))
        runs.append(run_policy(host, ALWAYS, little_guests(grows=grows, last_image=last_image), until_s=900.0))
    plain, smart = (run.samples[-1] for run in runs)
    vain, vain_smart = (vain_full_scans(run) for run in runs)
    assert vain == 0
    assert vain_smart <= most_vain
    if grows:
        assert plain.full_scans <= MOST_PLAIN
        assert smart.full_scans <= MOST_SMART
        assert smart.ksmd_cpu_seconds <= 0.6 * plain.ksmd_cpu_seconds
    else:
        assert plain.full_scans == smart.full_scans == 2 * 3
    assert smart.saved_pages >= plain.saved_pages * 0.98


def test_a_late_twin_s_pages_are_met_as_smart_scan_comes_to_visit_them() -> None:
    """The old guest's pages are visited in every ninth full scan, spread over all nine: a third never meets."""
    guest = PayloadGuest(name="old", memory_mib=259, own_mib=256, seed=1, slow_mib_per_s=13)
    host = SimHost(total_kib=TOTAL_KIB, guest_overhead_kib=0)
    run_fixed(host, STEADY, [Start(at_s=0.0, guest=guest)], until_s=60.0)
    host.set_parameters(dict(IDLE.items()))
    late = Start(at_s=1.0, guest=replace(guest, name="new", slow_mib_per_s=0))
    before, ours = host.ksmd.full_scans, run_policy(host, ALWAYS, [late], until_s=UNTIL_S, sample_every_s=10.0)
    assert ours.samples[-1].saved_pages >= 0.6 * 256 * PAGES_PER_MIB
    assert host.ksmd.full_scans - before <= MOST_FULL_SCANS
