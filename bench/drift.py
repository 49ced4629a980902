"""A simulated day on which guests' memory changes without growing.

16 guests with 55 GiB on a host that is always short of memory; every four hours each replaces 940 MiB of its own pages,
within five minutes, by content that is equal in all guests. The goals are told by what the kernel's advisor (scan-time)
saved on this simulated day on average, and by the ksmd time that it took: ADVISOR_GIB and ADVISOR_CPU_S. Pure: no
kernel is touched. Started by script/bench.
"""

import argparse
import sys
from collections.abc import Iterator
from math import inf

from bench.figures import Goal, tell_goals, tell_machine
from bench.sim.driver import Event, Outcome, run_policy
from bench.sim.host import SimHost
from bench.sim.memory import WRITE_BLOCKS
from bench.steps import Drift, Start
from demo.guests import PAGES_PER_MIB, PayloadGuest
from virtksm.config.schema import AdaptiveParams
from virtksm.model.snapshot import IDLE
from virtksm.policy.adaptive import AdaptivePolicy
from virtksm.values import replace

GUESTS, COMMON_MIB, ZERO_MIB, OWN_MIB = 16, 600, 100, 2800
TOTAL_KIB, OWN_KIB = 64 * 1024 * 1024, 4 * 1024 * 1024
HOURS, CHANGE_HOURS, CHANGE_S, PAGES_PER_S = 24, (1, 5, 9, 13, 17, 21), 300.0, 800.0
ADVISOR_GIB, ADVISOR_CPU_S = 41.8, 437.0
"""Simulated on 28 November 2026; ksmd's CPU seconds an hour."""
PAGES_PER_GIB = 1024 * PAGES_PER_MIB
REST_FROM_H = 2
"""Without any change: after the guests' start was scanned."""


def play(*, changes: bool, scale: float, hidden: str = "") -> Outcome:
    """Play the day, on which nobody tells what is `hidden`; `scale` makes guests, host and changes smaller."""
    common, zero, own = (int(mib * scale) for mib in (COMMON_MIB, ZERO_MIB, OWN_MIB))
    memory = common + zero + own + 20
    one = PayloadGuest(name="", memory_mib=memory, common_mib=common, zero_mib=zero, own_mib=own)
    guests = [replace(one, name=f"g{number}", seed=number) for number in range(GUESTS)]
    events: list[Event] = [Start(at_s=5.0 * number, guest=guest) for number, guest in enumerate(guests)]
    for hour in CHANGE_HOURS if changes else ():
        for at_s, pages_per_s in ((hour * 3600.0, PAGES_PER_S * scale), (hour * 3600.0 + CHANGE_S, 0.0)):
            events += [Drift(at_s=at_s, name=guest.name, pages_per_s=pages_per_s) for guest in guests]
    host = SimHost(
        total_kib=int(TOTAL_KIB * scale), own_kib=int(OWN_KIB * scale), fill_mib_per_s=100.0, hidden=frozenset([hidden])
    )
    host.set_parameters(dict(IDLE.items()))
    policy = AdaptivePolicy(params=AdaptiveParams())
    return run_policy(host, policy, events, until_s=HOURS * 3600.0, sample_every_s=20.0)


def mean_gib(run: Outcome, scale: float) -> float:
    """Return what was saved on average, at full size."""
    return sum(sample.saved_pages for sample in run.samples) / len(run.samples) / PAGES_PER_GIB / scale


def cpu_s_per_hour(run: Outcome, scale: float, from_h: int = 0) -> float:
    """Return ksmd's CPU seconds an hour, at full size."""
    return (run.cpu_until(HOURS * 3600.0) - run.cpu_until(from_h * 3600.0)) / (HOURS - from_h) / scale


def minutes_to_most(run: Outcome, scale: float) -> Iterator[float]:
    """Yield for each change how many minutes after its end all that is known to be equal was saved but for 10 % of it.

    Infinite if it was not before the next change. Once each guest has replaced all of its own pages, a change replaces
    what earlier ones have brought. The simulator writes whole blocks. 256 places at most share a zero page.
    """
    before_mib = COMMON_MIB * (GUESTS - 1) + ZERO_MIB * GUESTS * 255 / 256
    change_mib = CHANGE_S * PAGES_PER_S / PAGES_PER_MIB // (OWN_MIB / WRITE_BLOCKS) * (OWN_MIB / WRITE_BLOCKS)
    for number, hour in enumerate(CHANGE_HOURS, start=1):
        equal_mib = (min(number * change_mib, OWN_MIB) - 0.1 * change_mib) * (GUESTS - 1)
        least_pages, ended_s = (before_mib + equal_mib) * scale * PAGES_PER_MIB, hour * 3600.0 + CHANGE_S
        window = [sample for sample in run.samples if ended_s <= sample.t_s < (hour + 4) * 3600.0]
        yield next(((one.t_s - ended_s) / 60 for one in window if one.saved_pages >= least_pages), inf)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="script/bench drift", description="Simulate a day of memory that changes.")
    parser.add_argument("--scale", type=float, default=1.0, help="smaller guests (%(default)s)")
    scale = parser.parse_args(arguments).scale
    tell_machine()
    ours, still = (play(changes=changes, scale=scale) for changes in (True, False))
    waits = list(minutes_to_most(ours, scale))
    unmeasured = play(changes=True, scale=scale, hidden="dirty_rates")
    late = list(minutes_to_most(unmeasured, scale))
    for what, minutes in (("", waits), (", no dirty rates", late)):
        print(f"minutes from each change's end until 90 % of it{what}:", ", ".join(f"{one:.1f}" for one in minutes))
    print(f"no dirty rates: {mean_gib(unmeasured, scale):.1f} GiB, {cpu_s_per_hour(unmeasured, scale):.1f} s an hour")
    return tell_goals(
        [
            Goal(
                what="saved on average",
                measured=mean_gib(ours, scale),
                limit=0.97 * ADVISOR_GIB,
                unit="GiB",
                is_least=True,
            ),
            Goal(what="ksmd in an hour", measured=cpu_s_per_hour(ours, scale), limit=ADVISOR_CPU_S / 4, unit="s"),
            Goal(what="90 % of the slowest change", measured=max(waits), limit=12.0, unit="min"),
            Goal(
                what="ksmd without any change",
                measured=cpu_s_per_hour(still, scale, REST_FROM_H),
                limit=0.003 * 3600,
                unit="s an hour",
            ),
        ]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
