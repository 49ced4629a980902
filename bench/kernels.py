"""Simulated hours on kernels that tell less or skip more: the policy adaptive's figures there beside the newest's.

Before Linux 6.6 no pages_scanned tells when a batch is over and what a page costs; storm and growth are to be as on a
kernel that counts. From 6.7 on smart_scan skips old pages; little guests that grow are to take no more full scans for
it than without. Pure: no kernel is touched. Started by script/bench.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from bench.figures import Goal, tell_goals
from bench.race.measures import HOST_KIB, HOUR_S
from bench.race.works import list_works
from bench.sim.costs import KsmdCosts
from bench.sim.driver import Outcome, Scenario, run_policy
from bench.sim.host import SimHost
from bench.sim.ksmd import Ksmd
from bench.sim.visit import Rules
from bench.steps import Start
from demo.guests import PAGES_PER_MIB, PayloadGuest
from virtksm.config.schema import AdaptiveParams
from virtksm.model.snapshot import IDLE
from virtksm.policy.adaptive import AdaptivePolicy
from virtksm.values import replace

OLD, SMART = Rules(smart_scan=False, checksum_first=False), Rules()
UNCOUNTED = frozenset({"pages_scanned"})
SMALL_PERCENT = 10
LITTLE_GUESTS, LITTLE_EVERY_S = 3, 40.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hour:
    """What an hour gave: MiB saved on average, seconds from the last start until 90 % of what the end saves.

    `share` is what ksmd took of a core while a full scan was under way.
    """

    mean_mib: float
    until_most_s: float
    cpu_s: float
    share: float
    full_scans: int

    def line(self, name: str) -> str:
        """Write one row of the table."""
        return (
            f"{name:40} {self.mean_mib:8.0f} {self.until_most_s:9.0f} {self.cpu_s:8.2f} {100 * self.share:7.1f} "
            f"{self.full_scans:6}"
        )


HEAD = f"{'work, kernel':40} {'MiB held':>8} {'90 % in s':>9} {'ksmd s':>8} {'scans %':>7} {'scans':>6}"


def play(
    scenario: Scenario,
    rules: Rules,
    *,
    hidden: frozenset[str] = frozenset(),
    percent: int = 100,
    costs: KsmdCosts | None = None,
) -> Hour:
    """Play an hour of the race's host on a kernel with these rules that does not tell what is `hidden`."""
    host = SimHost(total_kib=HOST_KIB, ksmd=Ksmd(rules=rules, costs=costs or KsmdCosts()), hidden=hidden)
    host.set_parameters(dict(IDLE.items()))
    policy = AdaptivePolicy(params=AdaptiveParams(engage="always", cpu_percent=percent))
    return measure(run_policy(host, policy, scenario, until_s=HOUR_S), scenario)


def measure(run: Outcome, scenario: Scenario) -> Hour:
    last_s, pages = max(step.at_s for step in scenario), [sample.saved_pages for sample in run.samples]
    scanning = [
        later.ksmd_cpu_seconds - one.ksmd_cpu_seconds
        for one, later in zip(run.samples, run.samples[1:], strict=False)
        if one.settings.pages_to_scan and later.settings.pages_to_scan
    ]
    return Hour(
        mean_mib=sum(pages) / len(pages) / PAGES_PER_MIB,
        until_most_s=next(one.t_s for one in run.samples if one.saved_pages >= 0.9 * pages[-1]) - last_s,
        cpu_s=run.cpu_until(HOUR_S),
        share=sum(scanning) / max(len(scanning), 1),
        full_scans=run.samples[-1].full_scans,
    )


def little_guests() -> list[Start]:
    """Describe what showed the fault on real machines: three little guests that fill slowly, and grow for minutes."""
    one = PayloadGuest(name="", memory_mib=64, common_mib=16, own_mib=18, slow_mib_per_s=4, grow_mib_per_min=3)
    return [
        Start(at_s=LITTLE_EVERY_S * number, guest=replace(one, name=f"g{number}", seed=number + 1))
        for number in range(LITTLE_GUESTS)
    ]


def compare_old(work: str) -> list[Goal]:
    """Play one of the race's works with and without the kernel's count of scanned pages."""
    scenario = list_works(quick=False)[work].steps
    goals = []
    for percent in (100, SMALL_PERCENT):
        counted, uncounted = (
            play(scenario, OLD, hidden=hidden, percent=percent) for hidden in (frozenset(), UNCOUNTED)
        )
        print(counted.line(f"{work}, {percent} % of a core"))
        print(uncounted.line(f"{work}, {percent} % of a core, no pages_scanned"), flush=True)
        of = f"{work}, {percent} % of a core: "
        goals += [
            Goal(
                what=f"{of}held", measured=uncounted.mean_mib, limit=0.99 * counted.mean_mib, unit="MiB", is_least=True
            ),
            Goal(what=f"{of}90 % after", measured=uncounted.until_most_s, limit=1.25 * counted.until_most_s, unit="s"),
            Goal(what=f"{of}ksmd", measured=uncounted.cpu_s, limit=1.05 * counted.cpu_s, unit="s"),
        ]
    return [*goals, Goal(what=f"{of}ksmd's share", measured=100 * uncounted.share, limit=1.1 * SMALL_PERCENT, unit="%")]


def compare_smart() -> list[Goal]:
    """Play little guests with and without smart_scan."""
    plain, smart = (play(little_guests(), rules) for rules in (OLD, SMART))
    print(plain.line("little guests"))
    print(smart.line("little guests, smart_scan"), flush=True)
    return [
        Goal(
            what="little guests: held", measured=smart.mean_mib, limit=0.98 * plain.mean_mib, unit="MiB", is_least=True
        ),
        Goal(what="little guests: full scans", measured=smart.full_scans, limit=1.25 * plain.full_scans),
    ]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="script/bench kernels", description="Simulate hours on older kernels.")
    parser.parse_args(arguments)
    print(HEAD)
    return tell_goals([*compare_old("storm"), *compare_old("growth"), *compare_smart()])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
