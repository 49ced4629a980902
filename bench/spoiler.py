"""A simulated day with two small guests that rewrite what has merged: what others wait for, beside a day without.

A host with eight guests; two of 256 MiB give all their merged pages a new content as soon as they have merged. At hour
22 newcomers start. The spoilers are told by libvirt's dirty rates, by nothing, or by nothing as they give their pages
back through the balloon and fill them anew. Pure: no kernel is touched. Started by script/bench.
"""

from __future__ import annotations

import argparse
import sys

from bench.figures import Goal, tell_goals
from bench.sim.driver import Event, Outcome, run_policy
from bench.sim.host import SimHost
from bench.sim.ksmd import Ksmd
from bench.sim.visit import Rules
from bench.steps import Spoil, Start
from demo.guests import PAGES_PER_MIB, PayloadGuest
from virtksm.config.schema import AdaptiveParams
from virtksm.model.snapshot import IDLE
from virtksm.policy.adaptive import AdaptivePolicy
from virtksm.values import replace

TOTAL_KIB = 64 * 1024 * 1024
OLD = PayloadGuest(name="", memory_mib=2048, common_mib=900, own_mib=600)
SPOILER = PayloadGuest(name="", memory_mib=264, common_mib=256, image=77)
NEW = PayloadGuest(name="", memory_mib=520, common_mib=256, own_mib=256, image=5)
OLD_GUESTS, NEW_GUESTS = 8, 4
NEW_AT_S, UNTIL_S = 22 * 3600.0, 24 * 3600.0
SLOWDOWN = 2.0
LOW_S = 21.0
"""Longer than passes are apart, so that one sees it."""


def play(*, spoils: bool, is_measured: bool, low_s: float = 0.0) -> tuple[Outcome, SimHost]:
    """Play the day."""
    host = SimHost(total_kib=TOTAL_KIB, ksmd=Ksmd(rules=Rules(smart_scan=False)), measures_dirty_rates=is_measured)
    host.set_parameters(dict(IDLE.items()))
    events: list[Event] = [Start(at_s=one, guest=replace(OLD, name=f"old{one}", seed=one)) for one in range(OLD_GUESTS)]
    if spoils:
        names = ("spoiler0", "spoiler1")
        events += [Start(at_s=60.0 + number, guest=replace(SPOILER, name=name)) for number, name in enumerate(names)]
        events.append(Spoil(at_s=70.0, names=names, low_s=low_s))
    events += [
        Start(at_s=NEW_AT_S + one, guest=replace(NEW, name=f"new{one}", seed=100 + one)) for one in range(NEW_GUESTS)
    ]
    policy = AdaptivePolicy(params=AdaptiveParams(engage="always"))
    return run_policy(host, policy, events, until_s=UNTIL_S, sample_every_s=1.0), host


def seconds_to_most(run: Outcome) -> float | None:
    """Return after how many seconds 90 % of what the newcomers share among themselves were saved."""
    shared = (OLD_GUESTS - 1) * OLD.common_mib + 0.9 * (NEW_GUESTS - 1) * NEW.common_mib
    most = shared * PAGES_PER_MIB
    return next((one.t_s - NEW_AT_S for one in run.samples if one.t_s >= NEW_AT_S and one.saved_pages >= most), None)


def cpu_s_per_hour(run: Outcome) -> float:
    """Return ksmd's CPU seconds an hour, from the second hour on until the newcomers start."""
    return (run.cpu_until(NEW_AT_S) - run.cpu_until(3600.0)) / (NEW_AT_S / 3600 - 1)


def main(arguments: list[str]) -> int:
    argparse.ArgumentParser(prog="script/bench spoiler", description=__doc__.partition("\n")[0]).parse_args(arguments)
    goals = []
    for is_measured, low_s, what in (
        (True, 0.0, "dirty rates measured"),
        (False, 0.0, "no dirty rates"),
        (False, LOW_S, "by balloon"),
    ):
        base, _ = play(spoils=False, is_measured=is_measured)
        run, host = play(spoils=True, is_measured=is_measured, low_s=low_s)
        base_s = seconds_to_most(base)
        print(
            f"{what}: {base_s} s and {cpu_s_per_hour(base):.1f} ksmd-seconds an hour without spoilers; "
            f"with them {cpu_s_per_hour(run):.1f}, {host.spoilt} times rewritten"
        )
        limit = SLOWDOWN * (base_s or 0.0)
        goals.append(Goal(what=f"newcomers' 90 %, {what}", measured=seconds_to_most(run), limit=limit, unit="s"))
    return tell_goals(goals)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
