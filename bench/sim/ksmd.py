"""ksmd: one thread that scans a batch, sleeps, and scans on, over the list of processes (mm/ksm.c).

`advance` works until a moment and stops in the middle of a batch if need be. Time passes for CPU work and for sleep.
Many equal batches in a row are one step of the simulator.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

from bench.sim.advisor import Advisor
from bench.sim.costs import KsmdCosts, wakes_at_s
from bench.sim.memory import Region, SimGuest
from bench.sim.pages import PageState
from bench.sim.trees import Trees
from bench.sim.visit import Act, Rules, carry_out, cost_s, foresee, forget

CHANGING_STEP_S = 0.25
"""The longest step over pages that their guest is writing meanwhile."""

GROWING_STEP_PAGES = 4096
"""The longest step while a tree is as small; else it may double, since the cost of a search grows with it."""


@dataclass(slots=True, kw_only=True, eq=False)
class Ksmd:
    """The thread, its settings as in /sys/kernel/mm/ksm, and its counters.

    `now_s` is how far it has come. `cursor` is the process being scanned, None between two full scans; `region` and
    `page` are the place within it. An `advisor` sets pages_to_scan.
    """

    costs: KsmdCosts = field(default_factory=KsmdCosts)
    rules: Rules = field(default_factory=Rules)
    now_s: float = 0.0
    pages_to_scan: int = 100
    sleep_millisecs: int = 20
    advisor: Advisor | None = None
    trees: Trees = field(default_factory=Trees)
    pages_scanned: int = 0
    pages_skipped: int = 0
    full_scans: int = 0
    cpu_seconds: float = 0.0
    processes: list[SimGuest] = field(default_factory=list)
    cursor: SimGuest | None = None
    region: int = 0
    page: int = 0
    _left: int = 0
    _wakes_s: float | None = None

    def enter(self, guest: SimGuest) -> None:
        """Add a process behind the cursor: the full scan that is going on leaves it out."""
        place = len(self.processes) if self.cursor is None else self.processes.index(self.cursor)
        self.processes.insert(place, guest)

    def leave(self, guest: SimGuest) -> None:
        """A process ends. ksmd forgets its pages, and the counters fall, when it has done with the current one."""
        guest.has_ended = True
        for region in guest.regions:
            region.leave(self.trees)
        if guest is self.cursor:
            return
        self.processes.remove(guest)
        if any(state.known for region in guest.regions for _, _, state in region.states.within(0, region.most_pages)):
            self.processes.insert(0 if self.cursor is None else self.processes.index(self.cursor) + 1, guest)

    def unmerge(self, guest: SimGuest) -> None:
        """A process unmerges all of its memory (MADV_UNMERGEABLE), and ksmd forgets it; `enter` has it merge again."""
        for region in guest.regions:
            for low, high, state in list(region.states.within(0, region.most_pages)):
                if state.is_merged:
                    self.trees.cow_ksm += high - low
                    region.count(self.trees, low, high, state.version, live=-1)
                forget(self.trees, region, low, high, state)
                region.states.assign(low, high, PageState(version=state.version))
        place = self.processes.index(guest)
        self.processes.remove(guest)
        if guest is self.cursor:
            self._go_to(place)

    def set_sleep(self, sleep_millisecs: int) -> None:
        """Write sleep_millisecs: a changed value ends a sleep at once."""
        if sleep_millisecs != self.sleep_millisecs and self._wakes_s is not None:
            self._wakes_s = self.now_s
        self.sleep_millisecs = sleep_millisecs

    def advance(self, until_s: float) -> None:
        """Work until `until_s`."""
        while self.now_s < until_s:
            if not self.processes:
                self.now_s, self._left, self._wakes_s = until_s, 0, until_s  # a process to come wakes it at once
            elif self._wakes_s is not None:
                if self._wakes_s > until_s:
                    self.now_s = until_s
                    return
                self.now_s, self._wakes_s = max(self.now_s, self._wakes_s), None
                self._begin_batch()
            elif self._left == 0:
                self._end_batch(until_s)
            else:
                self._step(until_s)

    def _begin_batch(self) -> None:
        self._left = self.pages_to_scan
        self._spend(self.costs.wake_s)

    def _spend(self, cpu_seconds: float) -> None:
        self.cpu_seconds += cpu_seconds
        self.now_s += cpu_seconds

    def _end_batch(self, until_s: float) -> None:
        """Sleep; with sleep 0 go on at once, and with nothing to scan besides, spin."""
        if self.sleep_millisecs == 0 and self.pages_to_scan == 0:
            self._spend(until_s - self.now_s)
        elif self.sleep_millisecs == 0:
            self._left = self.pages_to_scan
        elif self.pages_to_scan == 0:
            self._doze(until_s)
        else:
            self._wakes_s = wakes_at_s(self.now_s, self.sleep_millisecs)

    def _doze(self, until_s: float) -> None:
        """Sleep and wake for nothing until `until_s`."""
        self._wakes_s = wakes_at_s(self.now_s, self.sleep_millisecs)
        period_s = wakes_at_s(self._wakes_s + self.costs.wake_s, self.sleep_millisecs) - self._wakes_s
        times = int((until_s - self._wakes_s) / period_s)
        if times > 0:
            self.cpu_seconds += times * self.costs.wake_s
            self._wakes_s += times * period_s

    def _step(self, until_s: float) -> None:
        """Visit the next pages that fare alike, or go to the next process."""
        if self.cursor is None:
            self.trees.begin_full_scan()
            if self.advisor is not None:
                self.advisor.began_s = self.now_s
            self._spend(self.costs.full_scan_s)
            self._go_to(0)
        guest = self.cursor
        assert guest is not None
        if guest.has_ended:
            self._forget_process(guest)
            return
        region = self._find_pages(guest)
        if region is None:
            self._go_to(self.processes.index(guest) + 1)
            return
        visit = foresee(region, self.page, self.now_s, self.trees, self.rules)
        high = visit.high
        if visit.act in (Act.INSERT, Act.PAIR):
            size = min(self.trees.in_tree, self.trees.stable.copies) if visit.act is Act.PAIR else self.trees.in_tree
            high = min(high, self.page + max(GROWING_STEP_PAGES, size))
        each_s = cost_s(visit, self.costs, self.trees)
        if not region.is_static(self.now_s):
            until_s = min(until_s, self.now_s + CHANGING_STEP_S)
        if visit.act is Act.SKIP:
            pages = min(high - self.page, self._fit(each_s, until_s))
            self._spend(pages * each_s)
            self.pages_skipped += pages
        else:
            pages = self._scan(high - self.page, each_s, until_s)
            self.pages_scanned += pages
        carry_out(visit, region, self.page, self.page + pages, self.trees)
        self.page += pages

    def _find_pages(self, guest: SimGuest) -> Region | None:
        while self.region < len(guest.regions):
            region = guest.regions[self.region]
            region.catch_up(self.trees, self.now_s)
            if self.page < region.filled(self.now_s):
                return region
            self.region, self.page = self.region + 1, 0
        return None

    def _go_to(self, place: int) -> None:
        """Go to a process; behind the last one the full scan ends, and the batch with it."""
        self.region, self.page = 0, 0
        if place < len(self.processes):
            self.cursor = self.processes[place]
        else:
            self.cursor = None
            self.full_scans += 1
            self._left = 0
            if self.advisor is not None:
                self.pages_to_scan = self.advisor.end_scan(self.now_s, self.cpu_seconds, self.pages_to_scan)

    def _forget_process(self, guest: SimGuest) -> None:
        place = self.processes.index(guest)
        pages = 0
        for region in guest.regions:
            for low, high, state in list(region.states.within(0, region.most_pages)):
                pages += (high - low) * state.known
                forget(self.trees, region, low, high, state)
        self._spend(pages * self.costs.forget_s)
        self.processes.remove(guest)
        self._go_to(place)

    def _fit(self, each_s: float, until_s: float) -> int:
        return max(1, ceil((until_s - self.now_s) / each_s))

    def _scan(self, pages: int, each_s: float, until_s: float) -> int:
        """Scan up to `pages` pages, in batches with sleep in between, and return how many there was time for."""
        done = 0
        while True:
            part = min(self._left, pages - done, self._fit(each_s, until_s))
            self._spend(part * each_s)
            self._left -= part
            done += part
            if self._left or done == pages or self.now_s >= until_s:
                return done
            self._end_batch(until_s)
            if self.pages_to_scan == 0:
                return done
            if self._wakes_s is not None:
                if self._wakes_s >= until_s:
                    return done
                self.now_s, self._wakes_s = self._wakes_s, None
                self._begin_batch()
            done += self._scan_whole_batches(pages - done, each_s, until_s)

    def _scan_whole_batches(self, pages: int, each_s: float, until_s: float) -> int:
        """At the beginning of a batch, make as many whole ones as there are pages and time for; all take equally long.

        Leave some for the step by step end.
        """
        batch = self.pages_to_scan
        work_s = self.costs.wake_s * (self.sleep_millisecs > 0) + batch * each_s
        period_s = work_s
        if self.sleep_millisecs:
            began_s = self.now_s - self.costs.wake_s
            period_s = wakes_at_s(began_s + period_s, self.sleep_millisecs) - began_s
        times = min(pages // batch, int((until_s - self.now_s) / period_s)) - 1
        if times <= 0:
            return 0
        self.cpu_seconds += times * work_s
        self.now_s += times * period_s
        return times * batch
