"""Scenarios and their drivers: guests come and go, and a policy, or fixed settings, run ksmd meanwhile.

`run_policy` makes passes as the agent does: at once for the first trigger, coalesced within the window after it, and at
the policy's own time; each pass is the product's Cycle. What comes out is a curve of samples and the passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bench.sim.host import SimHost
from bench.steps import Start, Stop
from tests.fakes import FakeStore, FakeSwitch
from virtksm.agent.coalesce import Coalescer
from virtksm.model.decision import Trigger
from virtksm.model.report import PassReport
from virtksm.model.snapshot import Settings
from virtksm.policy.base import Policy
from virtksm.tuning.cycle import Cycle, Tenure

FLAT_OUT = Settings(pages_to_scan=100_000, sleep_millisecs=0)
KERNEL_DEFAULT = Settings(pages_to_scan=100, sleep_millisecs=20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrite:
    """A guest rewrites so many own and common pages a second from now on; nobody is told."""

    at_s: float
    name: str
    own_per_s: float = 0.0
    common_per_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchAdvisorOn:
    """Somebody hands pages_to_scan to the kernel's advisor."""

    at_s: float


Event = Start | Stop | Rewrite | SwitchAdvisorOn
Scenario = Sequence[Event]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A moment: `saved_pages` is true, `pages_sharing` what the kernel says; `t_s` counts from the beginning."""

    t_s: float
    saved_pages: int
    pages_sharing: int
    full_scans: int
    pages_scanned: int
    pages_skipped: int
    ksmd_cpu_seconds: float
    free_kib: int
    settings: Settings


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a run gave; `passes` with their time, none for fixed settings."""

    samples: list[Sample] = field(default_factory=list)
    passes: list[tuple[float, PassReport]] = field(default_factory=list)

    def time_to(self, share: float, *, of_pages: int | None = None) -> float | None:
        """Tell when savings first reached a share of `of_pages` (else of the last sample's); None if never."""
        goal = share * (self.samples[-1].saved_pages if of_pages is None else of_pages)
        return next((sample.t_s for sample in self.samples if sample.saved_pages >= goal), None)

    def cpu_until(self, t_s: float) -> float:
        """Tell the CPU seconds that ksmd had used at a time, counted from the beginning."""
        used = [sample.ksmd_cpu_seconds for sample in self.samples if sample.t_s <= t_s]
        return used[-1] - self.samples[0].ksmd_cpu_seconds if used else 0.0


def run_fixed(
    host: SimHost, settings: Settings, scenario: Scenario, *, until_s: float, sample_every_s: float = 1.0
) -> Outcome:
    """Play the scenario with settings that nobody changes."""
    host.set_parameters(dict(settings.items()))
    return _Player(host, scenario, until_s, sample_every_s, None).play()


def run_policy(
    host: SimHost,
    policy: Policy[Any],
    scenario: Scenario,
    *,
    until_s: float,
    sample_every_s: float = 1.0,
    window_s: float = 0.25,
    is_local: bool = True,
) -> Outcome:
    """Play the scenario under a policy, until `until_s` seconds after its beginning.

    `window_s` is the agent's coalesce_ms; a host that is not local offers what libvirt alone tells.
    """
    cycle = Cycle(
        hypervisor=host,
        local=host.facts if is_local else None,
        policy=policy,
        store=FakeStore(),
        switch=FakeSwitch(),
        clock=host.clock,
        on_conflict="reassert",
        tenure=Tenure(),
    )
    return _Player(host, scenario, until_s, sample_every_s, _Passes(cycle, window_s)).play()


class _Passes:
    """When passes are due, and what they said; times are the host's."""

    def __init__(self, cycle: Cycle[Any], window_s: float) -> None:
        self._cycle = cycle
        self._coalescer = Coalescer(window_s=window_s).offer(Trigger.CONNECTED, 0.0)

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
        next_s = report.decision.next_pass_s
        self._coalescer = replace(self._coalescer, timer_s=None if next_s is None else now_s + next_s)
        return report


class _Player:
    """Walks through a scenario: events, passes and samples, each at its time."""

    def __init__(
        self, host: SimHost, scenario: Scenario, until_s: float, sample_every_s: float, passes: _Passes | None
    ) -> None:
        self._host = host
        self._events = sorted(scenario, key=lambda event: event.at_s)
        self._begin_s = host.now_s
        self._until_s = until_s
        self._sample_every_s = sample_every_s
        self._passes = passes
        self._outcome = Outcome()

    def play(self) -> Outcome:
        samples = 0
        while True:
            t_s = self._host.now_s - self._begin_s
            while self._events and self._events[0].at_s <= t_s:
                self._happen(self._events.pop(0))
            report = self._passes.run_due(self._host.now_s) if self._passes else None
            if report is not None:
                self._outcome.passes.append((t_s, report))
                continue
            if t_s >= samples * self._sample_every_s:
                self._outcome.samples.append(take_sample(self._host, samples * self._sample_every_s))
                samples += 1
            if t_s >= self._until_s:
                return self._outcome
            next_s = [self._until_s, samples * self._sample_every_s]
            if self._events:
                next_s.append(self._events[0].at_s)
            at_s = self._begin_s + min(next_s)
            if self._passes and (due_s := self._passes.next_s(self._host.now_s)) is not None:
                at_s = min(at_s, due_s)
            self._go_to(at_s)

    def _go_to(self, at_s: float) -> None:
        """Go to a time of the host's clock, and at least as far as floating point can tell."""
        if at_s > self._host.now_s:
            self._host.advance(at_s - self._host.now_s)
        self._host.now_s = max(at_s, math.nextafter(self._host.now_s, math.inf))

    def _happen(self, event: Event) -> None:
        match event:
            case Start():
                self._host.start(event.guest)
                self._tell(Trigger.STARTED)
            case Stop():
                self._host.stop(event.name)
                self._tell(Trigger.STOPPED)
            case Rewrite():
                common, _, own = self._host.guests_by_name[event.name].regions
                trees = self._host.ksmd.trees
                common.set_rewriting(trees, event.common_per_s, self._host.now_s)
                own.set_rewriting(trees, event.own_per_s, self._host.now_s)
            case SwitchAdvisorOn():
                self._host.ksmd.switch_advisor_on()

    def _tell(self, trigger: Trigger) -> None:
        if self._passes is not None:
            self._passes.offer(trigger, self._host.now_s)


def take_sample(host: SimHost, t_s: float) -> Sample:
    """Look at the host."""
    state = host.ksm_state()
    assert state.pages_sharing is not None
    return Sample(
        t_s=t_s,
        saved_pages=host.saved_pages,
        pages_sharing=state.pages_sharing,
        full_scans=host.ksmd.full_scans,
        pages_scanned=host.ksmd.pages_scanned,
        pages_skipped=host.ksmd.pages_skipped,
        ksmd_cpu_seconds=host.ksmd.cpu_seconds,
        free_kib=host.host_memory().free_kib,
        settings=state.settings,
    )
