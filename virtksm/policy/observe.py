"""Observe: what the adaptive policy would do on this host, of which nothing is done.

1. Each pass decides by the adaptive law. The target is what that would set, and the cycle sets none of it.
2. A full scan that the law would begin is due until the kernel has made one, for whichever program: then it counts as
   any other, and teaches what merges. It is never given up.
3. Guests are asked for nothing: their dirty rates are not measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtksm.model.snapshot import IDLE
from virtksm.policy.adaptive import WATCH_S, AdaptivePolicy
from virtksm.policy.adaptive.changes import add, total_kib
from virtksm.policy.adaptive.full_scans import cpu_share, feed
from virtksm.policy.adaptive.worth import expect
from virtksm.text import format_kib

if TYPE_CHECKING:
    from virtksm.model.decision import Decision
    from virtksm.model.snapshot import Settings, Snapshot
    from virtksm.policy.adaptive.engage import Need
    from virtksm.policy.adaptive.state import AdaptiveState, FullScan


class ObservePolicy(AdaptivePolicy):
    """The policy `observe`; its keys are adaptive's."""

    __slots__ = ()
    name = "observe"
    only_observes = True

    def _scan(
        self, snapshot: Snapshot, state: AdaptiveState, current: FullScan, need: Need
    ) -> tuple[Decision, AdaptiveState]:
        settings, _, _ = feed(snapshot, state, current, cpu_share(snapshot, self.params, need.pressure))
        scanned = add(current.scanning, state.backlog.scanned_once)
        is_check, kib = state.scans.is_check, sum(scanned.values())
        expected = expect(snapshot, state).gain_kib(scanned)
        rule, what = ("check_scan", "may have changed in place") if is_check else ("full_scan", "are not scanned yet")
        text = (
            f"{rule.replace('_', ' ')} of {format_kib(total_kib(snapshot, state))}: {format_kib(kib)} {what}, "
            f"and {format_kib(expected)} of that are expected to merge"
        )
        return self._decision(snapshot, state, need, rule, text, settings, WATCH_S[snapshot.source])

    def _word(self, text: str, settings: Settings) -> str:
        if settings == IDLE:
            return f"would let ksmd idle: {text.removesuffix(', ksmd idle')}"
        return f"would begin a {text}"
