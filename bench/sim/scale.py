"""What no machine here can hold: a host of 1 TiB with 500 guests, from its boot to the end of a day, in virtual time.

Run by hand: `.venv/bin/python -m bench.sim.scale [--hours 24] [--guests 500]`; nothing real is touched. All guests
start two seconds apart; then, every ten minutes, one ends and a new one starts, and some rewrite their own pages.
Printed for the policies with their defaults, the kernel's advisor and defaults, and (four hours of) flat-out scanning:
when 90 % of what can be saved was saved first, ksmd's CPU time, what was saved on average, and how much of the time
ksmd was parked.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

from bench.sim.driver import FLAT_OUT, KERNEL_DEFAULT, Event, Outcome, Rewrite, SwitchAdvisorOn, run_fixed, run_policy
from bench.sim.host import SimHost
from bench.steps import Start, Stop
from demo.guests import PAGES_PER_MIB, PayloadGuest
from virtksm.config.schema import AdaptiveParams, KsmtunedParams
from virtksm.model.snapshot import IDLE
from virtksm.policy.adaptive import AdaptivePolicy
from virtksm.policy.ksmtuned import KsmtunedPolicy

GUEST_MIB = 1792
COMMON_MIB, ZERO_MIB, OWN_MIB = 600, 100, 1000
IMAGES = 10
START_EVERY_S, REPLACE_EVERY_S = 2.0, 600.0
REWRITING_EVERY, REWRITE_PER_S = 50, 200.0
FILL_MIB_PER_S = 100.0
SAMPLE_S = 30.0
HOST_MIB_PER_GUEST = 1024 * 1024 // 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A name and what runs a scenario on a host until a time."""

    name: str
    play: Callable[[SimHost, list[Event], float], Outcome]
    most_hours: float = 24.0


def list_contenders() -> list[Contender]:
    """Return the contenders, the policies with their defaults."""
    adaptive, law = AdaptivePolicy(params=AdaptiveParams()), KsmtunedPolicy(params=KsmtunedParams())

    def play_adaptive(host: SimHost, events: list[Event], until_s: float) -> Outcome:
        return run_policy(host, adaptive, events, until_s=until_s, sample_every_s=SAMPLE_S)

    def play_law(host: SimHost, events: list[Event], until_s: float) -> Outcome:
        return run_policy(host, law, events, until_s=until_s, sample_every_s=SAMPLE_S)

    def play_default(host: SimHost, events: list[Event], until_s: float) -> Outcome:
        return run_fixed(host, KERNEL_DEFAULT, events, until_s=until_s, sample_every_s=SAMPLE_S)

    def play_advisor(host: SimHost, events: list[Event], until_s: float) -> Outcome:
        events = [SwitchAdvisorOn(at_s=0.0), *events]
        return run_fixed(host, KERNEL_DEFAULT, events, until_s=until_s, sample_every_s=SAMPLE_S)

    def play_flat(host: SimHost, events: list[Event], until_s: float) -> Outcome:
        return run_fixed(host, FLAT_OUT, events, until_s=until_s, sample_every_s=SAMPLE_S)

    return [
        Contender(name="adaptive", play=play_adaptive),
        Contender(name="ksmtuned's law", play=play_law),
        Contender(name="kernel's advisor", play=play_advisor),
        Contender(name="kernel's default", play=play_default),
        Contender(name="flat out", play=play_flat, most_hours=4.0),
    ]


def describe_guest(number: int) -> PayloadGuest:
    """Describe the guest of a number; every tenth is of the same image."""
    return PayloadGuest(
        name=f"g{number}",
        memory_mib=GUEST_MIB,
        common_mib=COMMON_MIB,
        zero_mib=ZERO_MIB,
        own_mib=OWN_MIB,
        image=number % IMAGES,
        seed=number,
    )


def describe_day(guests: int, until_s: float) -> list[Event]:
    """List what happens in a day."""
    events: list[Event] = [Start(at_s=number * START_EVERY_S, guest=describe_guest(number)) for number in range(guests)]
    booted_s = guests * START_EVERY_S + 60.0
    events += [
        Rewrite(at_s=booted_s, name=f"g{number}", own_per_s=REWRITE_PER_S)
        for number in range(guests - 1, guests // 2, -REWRITING_EVERY)
    ]
    for number in range(guests // 2):
        at_s = booted_s + (number + 1) * REPLACE_EVERY_S
        if at_s < until_s:
            events += [
                Stop(at_s=at_s, name=f"g{number}"),
                Start(at_s=at_s + 5.0, guest=describe_guest(guests + number)),
            ]
    return events


def saved_at_most_pages(guests: int) -> int:
    """Tell what can be saved when all guests run: of each image one copy of the common pages stays."""
    return ((guests - IMAGES) * COMMON_MIB + guests * ZERO_MIB) * PAGES_PER_MIB


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.sim.scale", description=__doc__.partition("\n")[0])
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--guests", type=int, default=500)
    parser.add_argument("--only", help="run this contender alone")
    given = parser.parse_args()
    most_pages = saved_at_most_pages(given.guests)
    settled_s = (given.guests - 1) * START_EVERY_S + (COMMON_MIB + ZERO_MIB + OWN_MIB) / FILL_MIB_PER_S
    print(f"{given.guests} guests of {GUEST_MIB} MiB; at most {most_pages / PAGES_PER_MIB / 1024:.0f} GiB can be saved")
    print("| contender | hours | 90 % after min | ksmd-s until then | ksmd-s an hour | saved GiB, mean | parked % |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for contender in list_contenders():
        if given.only not in (None, contender.name):
            continue
        hours = min(given.hours, contender.most_hours)
        host = SimHost(
            total_kib=HOST_MIB_PER_GUEST * given.guests * 1024,
            own_kib=8 * 1024 * 1024,
            fill_mib_per_s=FILL_MIB_PER_S,
        )
        host.set_parameters(dict(IDLE.items()))
        began_s = time.monotonic()
        outcome = contender.play(host, describe_day(given.guests, hours * 3600), hours * 3600)
        took_s = time.monotonic() - began_s
        most_s = outcome.time_to(0.9, of_pages=most_pages)
        samples = outcome.samples
        print(
            f"| {contender.name} | {hours:g} "
            f"| {'-' if most_s is None else f'{(most_s - settled_s) / 60:.1f}'} "
            f"| {'-' if most_s is None else f'{outcome.cpu_until(most_s):.0f}'} "
            f"| {samples[-1].ksmd_cpu_seconds / hours:.0f} "
            f"| {sum(one.saved_pages for one in samples) / len(samples) / PAGES_PER_MIB / 1024:.0f} "
            f"| {100 * sum(one.settings.pages_to_scan == 0 for one in samples) / len(samples):.0f} |"
            f" <!-- {took_s:.0f} s -->",
            flush=True,
        )


if __name__ == "__main__":
    main()
