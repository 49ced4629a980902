"""What the policy adaptive's check scans cost in the hour after a run of the race, from the simulator.

A run of five minutes ends before the first check scan is due. Pure: a work in, ksmd's CPU seconds out. Linux guests
are simulated as payload guests of the same common and own memory.
"""

from __future__ import annotations

from dataclasses import replace

from bench.race.measures import HOUR_S
from bench.race.works import Work
from bench.sim.driver import Event, run_policy
from bench.sim.host import SimHost
from bench.steps import Start
from virtksm.config.schema import AdaptiveParams
from virtksm.model.snapshot import IDLE
from virtksm.policy.adaptive import AdaptivePolicy

HOST_KIB = 24 * 1024 * 1024
AHEAD_S = 60.0
"""So long before the work's first step do guests start that have long been there."""


def simulate_check_scans(work: Work) -> float:
    """Return ksmd's CPU seconds from the end of the work's length to the end of the hour."""
    host = SimHost(total_kib=HOST_KIB)
    host.set_parameters(dict(IDLE.items()))
    ahead_s = AHEAD_S if work.already else 0.0
    events: list[Event] = [Start(at_s=0.0, guest=guest) for guest in work.already]
    events += [replace(step, at_s=step.at_s + ahead_s) for step in work.steps]
    policy = AdaptivePolicy(params=AdaptiveParams(engage="always"))
    outcome = run_policy(host, policy, events, until_s=ahead_s + HOUR_S, sample_every_s=10.0)
    return outcome.cpu_until(ahead_s + HOUR_S) - outcome.cpu_until(ahead_s + work.length_s)
