"""The adaptive policy on the simulated kernel: what can merge does, in bounded time, then it rests."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from bench.sim.driver import FLAT_OUT, Event, run_fixed, run_policy
from bench.sim.host import SimHost
from bench.sim.ksmd import Ksmd
from bench.sim.visit import Rules
from bench.steps import Start, Stop
from virtksm.config.schema import AdaptiveParams
from virtksm.demo.guests import PAGES_PER_MIB, PayloadGuest
from virtksm.model import PARKED
from virtksm.policy.adaptive import AdaptivePolicy

ALWAYS = AdaptivePolicy(params=AdaptiveParams(engage="always"))
LAST_START_S = 60.0
UNTIL_S = 240.0
"""Settling, waiting and two rounds over a few hundred MiB take seconds; what waits for longer waits for a probe."""
PROBED_S = 400.0
"""The first probe comes five minutes after the last round."""
TOTAL_KIB = 16 * 1024 * 1024


def new_host() -> SimHost:
    """A host without smart_scan: with it, two old pages in different phases may never meet, whoever scans."""
    host = SimHost(total_kib=TOTAL_KIB, ksmd=Ksmd(rules=Rules(smart_scan=False)))
    host.set_parameters(dict(PARKED.items()))
    return host


@st.composite
def storms(draw: st.DrawFn) -> list[Start]:
    count = draw(st.integers(1, 5))
    return [
        Start(
            at_s=draw(st.floats(0.0, LAST_START_S)),
            guest=PayloadGuest(
                name=f"g{number}",
                memory_mib=256,
                common_mib=draw(st.integers(8, 96)),
                own_mib=draw(st.integers(0, 96)),
                seed=number,
                slow_mib_per_s=draw(st.sampled_from([0, 20])),
            ),
        )
        for number in range(count)
    ]


@settings(max_examples=20)
@given(storms())
def test_all_that_can_merge_merges_in_bounded_time_and_then_ksmd_rests(starts: list[Start]) -> None:
    best = run_fixed(new_host(), FLAT_OUT, starts, until_s=UNTIL_S, sample_every_s=10.0).samples[-1].saved_pages
    ours = run_policy(new_host(), ALWAYS, starts, until_s=UNTIL_S, sample_every_s=10.0)
    # Less than 1/256 of the memory pays for no round.
    memory_pages = sum(start.guest.content_mib for start in starts) * PAGES_PER_MIB
    assert ours.samples[-1].saved_pages >= best - memory_pages // 128
    assert ours.samples[-1].settings.pages_to_scan == 0


@settings(max_examples=20)
@given(storms())
def test_its_scanning_is_within_a_constant_of_the_least(starts: list[Start]) -> None:
    """The least is two visits of every page; guests that come one by one, each filling slowly, cost up to four each."""
    ours = run_policy(new_host(), ALWAYS, starts, until_s=UNTIL_S, sample_every_s=10.0)
    overhead_mib = 48  # QEMU's own memory is scanned, too
    memory_pages = sum(start.guest.content_mib + overhead_mib for start in starts) * PAGES_PER_MIB
    rounds = ours.samples[-1].pages_scanned / memory_pages
    assert rounds <= 4 * (len(starts) + 1)


@settings(max_examples=10)
@given(storms(), st.booleans(), st.sampled_from([0, 1]))
def test_what_is_no_guests_merges_too_at_once_where_it_is_seen_and_by_a_probe_where_not(
    starts: list[Start], hides_others: bool, guests: int
) -> None:
    """Parking must not starve it: beside guests that run or without any."""
    spec = PayloadGuest(name="other", memory_mib=256, common_mib=64, own_mib=16, image=99, seed=99)
    host = new_host()
    host.hides_others = hides_others
    for number in range(2):
        host.start_other(replace(spec, name=f"other{number}", seed=100 + number))
    until_s = UNTIL_S + (PROBED_S if hides_others else 0.0)
    ours = run_policy(host, ALWAYS, starts[:guests], until_s=until_s, sample_every_s=10.0)
    assert ours.samples[-1].saved_pages >= 64 * PAGES_PER_MIB
    assert ours.samples[-1].settings.pages_to_scan == 0


@settings(max_examples=20)
@given(storms(), st.floats(0.0, 120.0), st.integers(0, 4))
def test_stopping_guests_do_no_harm(starts: list[Start], at_s: float, number: int) -> None:
    gone = starts[number % len(starts)]
    events: list[Event] = [*starts, Stop(at_s=max(at_s, gone.at_s + 1), name=gone.guest.name)]
    ours = run_policy(new_host(), ALWAYS, events, until_s=UNTIL_S, sample_every_s=10.0)
    assert ours.samples[-1].settings.pages_to_scan == 0
