"""A simulated hour of guests that merge beside two that cannot: the policy adaptive with and without those two.

Four guests fill 1 GiB each and grow by 10 MiB a minute for a quarter of an hour, two and two alike; a fifth starts in
the last quarter. Beside them a guest of 2 GiB with shared memory (as for virtiofs) grows by 50 MiB a second, and starts
anew every five minutes; another, of 4 GiB and with nosharepages, grows by 50 MiB a minute. These two may neither cost
ksmd's time nor delay the others' merging.
Pure: no kernel is touched. Started by script/bench.
"""

from __future__ import annotations

import argparse
import sys

from bench.figures import Goal, tell_goals
from bench.sim.driver import Event, Outcome, run_policy
from bench.sim.host import SimHost
from bench.steps import Start, Stop
from demo.guests import PAGES_PER_MIB, PayloadGuest
from virtksm.config.schema import AdaptiveParams
from virtksm.model.snapshot import IDLE
from virtksm.policy.adaptive import AdaptivePolicy

TOTAL_KIB = 64 * 1024 * 1024
HOUR_S = 3600
BESIDE_FROM_S, AGAIN_S = 300, 300
"""When the two start, and after how long the one with shared memory does so again."""
LATE_S = 2700.0
CPU_PERCENT, SAVED_PERCENT = 110.0, 99.0
"""The goals: ksmd's CPU time and the savings on average, beside those without the two."""


def play(*, beside: bool) -> Outcome:
    """Play the hour, with or without the two that cannot merge `beside` the others."""
    events: list[Event] = [
        Start(
            at_s=LATE_S if number == 4 else 5.0 * number,
            guest=PayloadGuest(
                name=f"plain{number}",
                memory_mib=1003 if number == 4 else 1153,
                seed=number // 2,
                grow_mib_per_min=10,
                common_mib=500,
                zero_mib=50,
                own_mib=450,
            ),
        )
        for number in range(5)
    ]
    if beside:
        apart = PayloadGuest(name="apart", memory_mib=4096, own_mib=500, grow_mib_per_min=50, nosharepages=True)
        shared = PayloadGuest(name="shared", memory_mib=2048, own_mib=50, grow_mib_per_min=3000, is_shared=True)
        events.append(Start(at_s=BESIDE_FROM_S, guest=apart))
        for at_s in range(BESIDE_FROM_S, HOUR_S, AGAIN_S):
            events += [Start(at_s=at_s, guest=shared), Stop(at_s=at_s + AGAIN_S - 1, name=shared.name)]
    host = SimHost(total_kib=TOTAL_KIB)
    host.set_parameters(dict(IDLE.items()))
    return run_policy(host, AdaptivePolicy(params=AdaptiveParams(engage="always")), events, until_s=HOUR_S)


def mean_mib(run: Outcome) -> float:
    """Return what was saved on average."""
    return sum(sample.saved_pages for sample in run.samples) / len(run.samples) / PAGES_PER_MIB


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="script/bench mixed", description="Simulate guests that cannot merge.")
    parser.parse_args(arguments)
    alone, mixed = (play(beside=beside) for beside in (False, True))
    for name, run in (("alone", alone), ("mixed", mixed)):
        last = run.samples[-1]
        print(
            f"{name}: {mean_mib(run):.1f} MiB saved on average, {run.cpu_until(HOUR_S):.2f} s of ksmd, "
            f"{last.full_scans} full scans"
        )
    return tell_goals(
        [
            Goal(
                what="ksmd, beside the run without guests that cannot merge",
                measured=100 * mixed.cpu_until(HOUR_S) / alone.cpu_until(HOUR_S),
                limit=CPU_PERCENT,
                unit="%",
            ),
            Goal(
                what="saved on average, beside it",
                measured=100 * mean_mib(mixed) / mean_mib(alone),
                limit=SAVED_PERCENT,
                unit="%",
                is_least=True,
            ),
        ]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
