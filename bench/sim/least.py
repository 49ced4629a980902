"""Guests that start in a series: what ksmd takes for them, beside the least that waiting and scanning cost anybody."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from bench.sim.costs import KsmdCosts
from bench.sim.driver import run_policy
from bench.sim.host import SimHost
from bench.sim.ksmd import Ksmd
from bench.sim.visit import Rules
from bench.sim.works import idle
from bench.steps import Start
from demo.guests import PAGES_PER_MIB, PayloadGuest
from virtksm.config.schema import AdaptiveParams
from virtksm.policy.adaptive import AdaptivePolicy
from virtksm.policy.adaptive.growth import Growth
from virtksm.policy.adaptive.worth import FIRST_MERGE_RATIO, MIN_MERGE_RATIO, PRICES
from virtksm.values import replace

AFTER_S = 240.0
"""Within so long after the last start all is merged; what is expected to merge by less waits longer in proportion."""
GAPS_S = (1.0, 5.0, 16.0, 30.0, 100.0, 250.0, 600.0)
COMMON_MIB, OWN_MIB = (8, 32, 64, 128, 256), (8, 32, 128, 256)
MAX_GUESTS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Equal guests, each of so much common memory and so much of its own."""

    starts_s: list[float]
    common_mib: int
    own_mib: int

    def least_s(self) -> float:
        """Return the least that anybody spends who knows all starts: ksmd-seconds, and waiting at the settled price.

        Each guest may be covered at its start or at any later one's. A bound from below: a guest fills at once, a full
        scan takes no time, trees cost nothing to search, and no page is scanned more than twice.
        """
        costs, common, own = KsmdCosts(), self.common_mib * PAGES_PER_MIB, self.own_mib * PAGES_PER_MIB
        least = [0.0]
        for last, at_s in enumerate(self.starts_s):
            choices = []
            for first in range(last + 1):  # guests first..last are covered at the last one's start
                merged, alone = (first * common, first * own) if first > 1 else (0, first * (common + own))
                new = last + 1 - first
                scan_s = 2 * (merged * costs.merged_s + alone * costs.settled_s)
                scan_s += new * (costs.first_s * (common + own) + costs.settled_s * own + costs.join_s * common)
                waited_s = sum(at_s - self.starts_s[one] for one in range(max(first, 1), last + 1))
                worth_s = PRICES[Growth.SETTLED] * waited_s * common / ((last + 1) * (common + own))
                choices.append(least[first] + scan_s + worth_s)
            least.append(min(choices))
        return least[-1]

    def ksmd_s(self, *, tells_images: bool = False) -> float:
        """Return what the policy has ksmd take for them; raises ValueError where not all has merged."""
        host = SimHost(
            total_kib=64 * 1024 * 1024,
            fill_mib_per_s=2000.0,
            guest_overhead_kib=0,
            ksmd=Ksmd(rules=Rules(smart_scan=False)),
            tells_images=tells_images,
        )
        guest = PayloadGuest(
            name="", memory_mib=self.common_mib + self.own_mib + 16, common_mib=self.common_mib, own_mib=self.own_mib
        )
        starts = [
            Start(at_s=at_s, guest=replace(guest, name=f"g{number}", seed=number + 1))
            for number, at_s in enumerate(self.starts_s)
        ]
        until_s = self.starts_s[-1] + AFTER_S * (FIRST_MERGE_RATIO / MIN_MERGE_RATIO if tells_images else 1)
        policy = AdaptivePolicy(params=AdaptiveParams(engage="always"))
        last = run_policy(idle(host), policy, starts, until_s=until_s, sample_every_s=10.0).samples[-1]
        if last.saved_pages < (len(starts) - 1) * self.common_mib * PAGES_PER_MIB * 255 // 256:
            raise ValueError(f"not all has merged: {self}")
        return last.ksmd_cpu_seconds


def random_series(count: int) -> Iterator[Series]:
    """Yield so many series, drawn at random but the same each time."""
    draw = random.Random(1)
    for _ in range(count):
        starts_s = [0.0]
        for _ in range(draw.randrange(MAX_GUESTS)):
            gap_s = draw.choice(GAPS_S) if draw.random() < 0.5 else draw.uniform(1.0, 600.0)
            starts_s.append(starts_s[-1] + gap_s)
        yield Series(starts_s=starts_s, common_mib=draw.choice(COMMON_MIB), own_mib=draw.choice(OWN_MIB))
