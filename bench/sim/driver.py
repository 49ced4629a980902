"""Scenarios and their drivers: guests start and stop, and a policy, or fixed settings, run ksmd meanwhile.

`run_policy` makes passes as the agent does: at once for the first trigger, coalesced within the window after it, and at
the policy's own time; each pass is the product's Cycle. What comes out is a curve of samples and the passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.sim.advisor import FIRST_PAGES, Advisor
from bench.sim.host import SimHost
from bench.steps import Drift, Grow, Spoil, Start, Stop
from tests.fakes import FakeStore, FakeSwitch
from virtksm.agent.coalesce import Coalescer
from virtksm.model.decision import Trigger
from virtksm.model.report import PassReport
from virtksm.model.snapshot import Settings
from virtksm.policy.base import Policy
from virtksm.tuning.cycle import Cycle, Tenure
from virtksm.tuning.ownership import HostState
from virtksm.values import replace

FLAT_OUT = Settings(pages_to_scan=100_000, sleep_millisecs=0)
WINDOW_S = 0.25
"""The agent's coalesce_ms."""


Event = Start | Stop | Drift | Grow | Spoil
Scenario = Sequence[Event]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A moment; `saved_pages` is what is truly saved, but for what is rewritten once it has merged (Spoil).

    `t_s` counts from the beginning.
    """

    t_s: float
    saved_pages: int
    full_scans: int
    pages_scanned: int
    ksmd_cpu_seconds: float
    settings: Settings


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a run gave; `passes` with their time, none for fixed settings."""

    samples: list[Sample] = field(default_factory=list)
    passes: list[tuple[float, PassReport]] = field(default_factory=list)

    def cpu_until(self, t_s: float) -> float:
        """Tell the CPU seconds that ksmd had used at a time, counted from the beginning."""
        used = [sample.ksmd_cpu_seconds for sample in self.samples if sample.t_s <= t_s]
        return used[-1] - self.samples[0].ksmd_cpu_seconds if used else 0.0


def run_fixed(
    host: SimHost, settings: Settings, scenario: Scenario, *, until_s: float, sample_every_s: float = 1.0
) -> Outcome:
    """Play the scenario with fixed settings."""
    host.set_parameters(dict(settings.items()))
    return _play(host, scenario, until_s, sample_every_s)


def run_advisor(host: SimHost, scenario: Scenario, *, until_s: float, sample_every_s: float = 1.0) -> Outcome:
    """Play the scenario under the kernel's advisor, switched on before any guest starts."""
    host.ksmd.advisor = Advisor()
    first = Settings(pages_to_scan=FIRST_PAGES, sleep_millisecs=20)
    return run_fixed(host, first, scenario, until_s=until_s, sample_every_s=sample_every_s)


def run_policy(
    host: SimHost,
    policy: Policy[Any],
    scenario: Scenario,
    *,
    until_s: float,
    sample_every_s: float = 1.0,
    keeps_passes: bool = True,
) -> Outcome:
    """Play the scenario under a policy, until `until_s` seconds after its beginning.

    Passes are not kept where nobody asks for them: those of a day over 500 guests fill gigabytes.
    """
    cycle = Cycle(
        hypervisor=host,
        local=None if "local_facts" in host.hidden else host.facts,
        policy=policy,
        store=_LastState(),
        switch=FakeSwitch(),
        clock=host.clock,
        on_conflict="reassert",
        tenure=Tenure(),
    )
    cycle.tenure.notes.unmerged = host.unmerged
    return _play(host, scenario, until_s, sample_every_s, _Passes(cycle, host, are_kept=keeps_passes))


class _LastState(FakeStore):
    """A store that keeps the last state alone, as a real one."""

    def save(self, state: HostState) -> None:
        super().save(state)
        self.saved.clear()


class _Passes:
    """When passes are due, and what they said; times are the host's."""

    def __init__(self, cycle: Cycle[Any], host: SimHost, *, are_kept: bool) -> None:
        self.are_kept = are_kept
        self._cycle = cycle
        self._host = host
        self._coalescer = Coalescer(window_s=WINDOW_S).offer(Trigger.CONNECTED, 0.0)

    def offer(self, trigger: Trigger, now_s: float) -> None:
        self._coalescer = self._coalescer.offer(trigger, now_s)

    def next_s(self, now_s: float) -> float | None:
        return self._coalescer.next_s(now_s)

    def run_due(self, now_s: float) -> PassReport | None:
        """Run the pass that is due now, if one is."""
        self._coalescer = self._coalescer.ring(now_s)
        due_s = self._coalescer.due_s(now_s)
        if due_s is None or due_s > now_s:
            return None
        triggers, self._coalescer = self._coalescer.take(now_s)
        report = self._cycle.run(triggers)
        self._cycle.tenure.notes.traits |= self._host.traits  # read after each pass, as the agent does
        self._host.keep_out(report.decision.rewriters)
        if report.decision.wants_merged:
            self._cycle.tenure.notes.merged |= self._host.facts.merged(report.snapshot.guests)
        next_s = report.decision.next_pass_s
        self._coalescer = replace(self._coalescer, timer_s=None if next_s is None else now_s + next_s)
        return report


def _play(
    host: SimHost, scenario: Scenario, until_s: float, sample_every_s: float, passes: _Passes | None = None
) -> Outcome:
    """Walk through a scenario: events, passes and samples, each at its time."""
    outcome, events, begin_s = Outcome(), sorted(scenario, key=lambda event: event.at_s), host.now_s
    while True:
        t_s = host.now_s - begin_s
        while events and events[0].at_s <= t_s:
            trigger = _happen(host, events.pop(0))
            if passes is not None and trigger is not None:
                passes.offer(trigger, host.now_s)
        report = passes.run_due(host.now_s) if passes else None
        if passes and report is not None:
            if passes.are_kept:
                outcome.passes.append((t_s, report))
            continue
        if t_s >= len(outcome.samples) * sample_every_s:
            outcome.samples.append(take_sample(host, len(outcome.samples) * sample_every_s))
        if t_s >= until_s:
            return outcome
        next_s = [until_s, len(outcome.samples) * sample_every_s, *(event.at_s for event in events[:1])]
        at_s = begin_s + min(next_s)
        if passes and (due_s := passes.next_s(host.now_s)) is not None:
            at_s = min(at_s, due_s)
        if at_s > host.now_s:
            host.advance(at_s - host.now_s)
        host.now_s = max(at_s, math.nextafter(host.now_s, math.inf))  # at least as far as floating point can tell


def _happen(host: SimHost, event: Event) -> Trigger | None:
    """Let it happen; return what libvirt tells of it, if anything."""
    if isinstance(event, Start):
        host.start(event.guest)
        return Trigger.STARTED
    if isinstance(event, Drift | Grow):
        own = host.guests_by_name[event.name].regions[-1]
        if isinstance(event, Drift):
            own.drift(host.ksmd.trees, host.now_s, event.pages_per_s)
        else:
            own.grow(host.now_s, event.mib * 1024 // host.page_kib)
        return None
    if isinstance(event, Spoil):
        host.spoil = event
        return None
    host.stop(event.name)
    return Trigger.STOPPED


def take_sample(host: SimHost, t_s: float) -> Sample:
    """Sample the host."""
    spoilers = host.spoil.names if host.spoil else ()
    merged_pages = sum(host.guests_by_name[name].merged_pages()[1] for name in spoilers)
    return Sample(
        t_s=t_s,
        saved_pages=host.saved_pages - merged_pages * (len(spoilers) - 1) // max(len(spoilers), 1),
        full_scans=host.ksmd.full_scans,
        pages_scanned=host.ksmd.pages_scanned,
        ksmd_cpu_seconds=host.ksmd.cpu_seconds,
        settings=host.ksm_state().settings,
    )
