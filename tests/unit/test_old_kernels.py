"""Older kernels: what their KSM does not tell is None, and both policies do their work without it.

Files as in each version's Documentation/admin-guide/mm/ksm.rst and mm/ksm.c.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean

import pytest

from bench.race.measures import HOST_KIB, HOUR_S
from bench.race.works import list_works
from bench.sim.costs import KsmdCosts
from bench.sim.driver import Outcome, Scenario, run_policy
from bench.sim.host import SimHost
from bench.sim.ksmd import Ksmd
from bench.sim.visit import Rules
from bench.steps import Start
from demo.guests import PAGES_PER_MIB, PayloadGuest
from tests.fakes import FakeClock
from virtksm.config.schema import AdaptiveParams, KsmtunedParams
from virtksm.host.local_facts import ProcFacts
from virtksm.model.snapshot import IDLE
from virtksm.policy.adaptive import AdaptivePolicy
from virtksm.policy.ksmtuned import KsmtunedPolicy
from virtksm.values import replace

FILES_5_10 = frozenset([
    "full_scans", "max_page_sharing", "merge_across_nodes", "pages_shared", "pages_sharing", "pages_to_scan",
    "pages_unshared", "pages_volatile", "run", "sleep_millisecs", "stable_node_chains",
    "stable_node_chains_prune_millisecs", "stable_node_dups", "use_zero_pages",
])  # fmt: skip
FILES_6_6 = FILES_5_10 | {"general_profit", "pages_scanned", "ksm_zero_pages"}
FILES_6_12 = FILES_6_6 | {"smart_scan", "pages_skipped", "advisor_mode"}
"""Without the advisor's own settings, which nobody reads."""

OLD, SMART = Rules(smart_scan=False, checksum_first=False), Rules()
UNCOUNTED = frozenset({"pages_scanned"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A version: its files of KSM, whether /proc/vmstat counts writes to merged pages, and how its ksmd visits."""

    version: str
    files: frozenset[str]
    counts_broken: bool
    rules: Rules


KERNELS = (
    Kernel(version="5.10 and 5.15", files=FILES_5_10, counts_broken=False, rules=OLD),
    Kernel(version="6.1", files=FILES_5_10, counts_broken=True, rules=OLD),
    Kernel(version="6.6", files=FILES_6_6, counts_broken=True, rules=OLD),
    Kernel(version="6.12", files=FILES_6_12, counts_broken=True, rules=SMART),
)
COUNTERS = ("run", "pages_scanned", "pages_skipped", "smart_scan", "general_profit", "ksm_zero_pages", "use_zero_pages")
COMMON_MIB = 48
GUESTS = 4


@pytest.fixture(params=KERNELS, ids=lambda kernel: kernel.version)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    found: Kernel = request.param
    return found


def test_what_a_kernel_does_not_tell_is_none_and_never_0(kernel: Kernel, tmp_path: Path) -> None:
    for name in kernel.files:
        (tmp_path / name).write_text("none [scan-time]\n" if name == "advisor_mode" else "7\n")
    facts = ProcFacts(FakeClock(), sys_ksm=str(tmp_path))
    assert {name: facts.ksm_counter(name) for name in COUNTERS} == {
        name: 7 if name in kernel.files else None for name in COUNTERS
    }
    assert facts.advisor_mode() == ("scan-time" if "advisor_mode" in kernel.files else None)


@pytest.mark.parametrize("policy", ["adaptive", "ksmtuned"])
def test_a_policy_does_its_work_on_a_kernel(kernel: Kernel, policy: str) -> None:
    hidden = FILES_6_12 - kernel.files if kernel.counts_broken else FILES_6_12 - kernel.files | {"cow_ksm"}
    host = SimHost(total_kib=2**21, ksmd=Ksmd(rules=kernel.rules), hidden=hidden)
    host.set_parameters(dict(IDLE.items()))
    starts = [
        Start(at_s=2.0 * n, guest=PayloadGuest(name=f"g{n}", memory_mib=128, common_mib=COMMON_MIB, own_mib=64, seed=n))
        for n in range(GUESTS)
    ]
    law = (
        AdaptivePolicy(params=AdaptiveParams(engage="always"))
        if policy == "adaptive"
        else KsmtunedPolicy(params=KsmtunedParams(thres_coef=100))
    )
    run = run_policy(host, law, starts, until_s=300.0)
    assert run.samples[-1].saved_pages == (GUESTS - 1) * COMMON_MIB * PAGES_PER_MIB
    assert all(report.refusals == () for _, report in run.passes)
    is_idle = run.samples[-1].settings.pages_to_scan == 0
    assert is_idle == (policy == "adaptive")


def play(scenario: Scenario, percent: int, hidden: frozenset[str], costs: KsmdCosts | None = None) -> Outcome:
    """Play an hour of the race's host on an old kernel that does not tell what is `hidden`."""
    host = SimHost(total_kib=HOST_KIB, ksmd=Ksmd(rules=OLD, costs=costs or KsmdCosts()), hidden=hidden)
    host.set_parameters(dict(IDLE.items()))
    policy = AdaptivePolicy(params=AdaptiveParams(engage="always", cpu_percent=percent))
    return run_policy(host, policy, scenario, until_s=HOUR_S)


def seconds_to_most(run: Outcome) -> float:
    most = 0.9 * run.samples[-1].saved_pages
    return next(one.t_s for one in run.samples if one.saved_pages >= most)


def mean_pages(run: Outcome) -> float:
    return mean(one.saved_pages for one in run.samples)


def share_while_scanning(run: Outcome) -> float:
    """Return what ksmd took of a core while a full scan was under way."""
    used_s = [
        later.ksmd_cpu_seconds - one.ksmd_cpu_seconds
        for one, later in pairwise(run.samples)
        if one.settings.pages_to_scan and later.settings.pages_to_scan
    ]
    return sum(used_s) / max(len(used_s), 1)


@pytest.mark.parametrize("hidden", [["pages_scanned"], ["ksmd_cpu_seconds"], ["pages_scanned", "ksmd_cpu_seconds"]])
@pytest.mark.parametrize("work", ["storm", "growth"])
@pytest.mark.parametrize("percent", [10, 100])
def test_with_less_told_of_ksmd_s_work_the_budget_is_kept_and_by_its_cpu_time_merging_takes_no_longer(
    percent: int, work: str, hidden: list[str]
) -> None:
    """The race's works at full size. Before Linux 6.6 no kernel counts the pages that were scanned."""
    steps = list_works(quick=False)[work].steps
    last_s = max(step.at_s for step in steps)
    all_told, ours = (play(steps, percent, frozenset(names)) for names in ([], hidden))
    assert share_while_scanning(ours) <= 1.1 * percent / 100
    assert ours.cpu_until(HOUR_S) <= 1.05 * all_told.cpu_until(HOUR_S)
    assert ours.samples[-1].saved_pages >= 0.996 * all_told.samples[-1].saved_pages
    if "ksmd_cpu_seconds" not in hidden:
        assert seconds_to_most(ours) - last_s <= 1.25 * (seconds_to_most(all_told) - last_s)
        assert mean_pages(ours) >= 0.99 * mean_pages(all_told)


def test_a_small_budget_on_a_slow_host_delays_a_full_scan_and_does_not_end_it() -> None:
    """It was given up again and again: a page's second scan costs more than the first one's estimate allowed for."""
    costs = KsmdCosts()
    slow = replace(costs, settled_s=6 * costs.settled_s, join_s=6 * costs.join_s, pair_s=6 * costs.pair_s)
    for hidden in (frozenset[str](), UNCOUNTED):
        run = play(list_works(quick=False)["storm"].steps, 10, hidden, slow)
        assert run.samples[-1].full_scans == 2
