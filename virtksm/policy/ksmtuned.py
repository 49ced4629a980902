"""ksmtuned's law, to the number: scan harder while memory is short, ease off while not, stop when plenty.

In goes a snapshot, the state (npages and the time of the last step) and the triggers; out come the target
settings, the reason with its numbers, and the next state. Nothing is read, written, logged or timed here. All
quantities are whole KiB, pages and ms; by the configuration's ranges none is negative but npages_decay, which
is only added, so that Python's `//` is bash's division, and rule 1 keeps all of them within bash's 64 bits.

The law, from ksmtuned's `adjust` (Debian's package ksmtuned; docs/policies.md tells it with its background):

1. With no memory known (a total of 0, below 0, or beyond what any host has) there is nothing to tune: ksmd is idle.
2. total is MemTotal, free is MemFree + Buffers + Cached, committed is the sum of the guests' resident memory.
3. thres is thres_coef percent of total, but at least thres_const.
4. sleep is sleep_msec on a host of 16 GiB, less on larger ones in proportion, more on smaller ones; at least
   10 ms and at most what the kernel takes.
5. Stop when committed + thres < total and free > thres: ksmd is idle, npages stays as it is.
6. Otherwise run. When free < thres, npages grows by npages_boost ("boost"), else it changes by npages_decay,
   which is negative ("decay"); then it is held within npages_min..npages_max.
7. A trigger that is no step (balloon, memory device) decides by rule 5 alone: where it runs, it runs with npages as it
   is, held within npages_min..npages_max ("hold"), and the state stays as it is.
8. The next step is monitor_interval after the last one.

At first npages is 0 where local, as in ksmtuned; on a remote host, where no state is saved, it is what the
kernel has, if that is above 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from virtksm.config.schema import KsmtunedParams
from virtksm.model.decision import PASSED_S, Decision, Number, Reason, Triggers
from virtksm.model.snapshot import IDLE, KERNEL_MAXIMUM, Guest, Settings, Snapshot, Source
from virtksm.values import build, dump, replace

if TYPE_CHECKING:
    from virtksm.policy.thresholds import Quantity

NAME = "ksmtuned"

MAX_TOTAL_KIB = 2**53
"""8 EiB: more than any host has, and little enough that no product here leaves bash's 64 bits."""

LATEST_S = 2.0**53
"""Bounds a time of a state: seconds beyond it (or not finite) come from no clock."""

MIN_SLEEP_MS = 10
SLEEP_REFERENCE_KIB = 16 * 1024 * 1024
"""sleep_msec is meant for a host of 16 GiB (ksmtuned's own comment)."""


LEAVES = {"unknown": "decides by memory", "stop": "scans"}
"""What it is called when a rule no longer holds, whichever comes after it."""
ENTERS = {"stop": "lets ksmd idle", "boost": "scans harder (boost)", "decay": "eases off (decay)"}
"""What it is called when a rule fires after another."""


class KsmtunedState(NamedTuple):
    """What a step hands to the next: the script's npages (pages), and when it was made (CLOCK_BOOTTIME s)."""

    npages: int
    stepped_at_s: float | None


class KsmtunedPolicy:
    """The policy `ksmtuned`; `params` are the keys of the configuration's table [ksmtuned]."""

    name = NAME
    only_observes = False
    wants_maxima = False
    wants_other_processes = False

    def __init__(self, params: KsmtunedParams) -> None:
        self.params = params

    def first_state(self, snapshot: Snapshot) -> KsmtunedState:
        """Return the state to begin with: 0 pages where local, the kernel's pages_to_scan on a remote host."""
        found = snapshot.ksm.settings.pages_to_scan or 0
        npages = found if snapshot.source is Source.LIBVIRT else 0
        return KsmtunedState(npages=npages, stepped_at_s=None)

    def load_state(self, values: Mapping[str, object]) -> KsmtunedState:
        """Rebuild the state from what `dump_state` gave; raise ValueError if it is not one."""
        state = build(KsmtunedState, values, least=-LATEST_S, most=LATEST_S, is_exact=True)
        if not 0 <= state.npages <= KERNEL_MAXIMUM:
            raise ValueError(f"npages is {state.npages}, not a number of pages")
        return state

    def dump_state(self, state: KsmtunedState) -> dict[str, object]:
        values: dict[str, object] = dump(state)
        return values

    def decide(self, snapshot: Snapshot, state: KsmtunedState, triggers: Triggers) -> tuple[Decision, KsmtunedState]:
        """Decide by the rules of this module's docstring, in their order. Pure; raises nothing."""
        target, reason, npages = decide_settings(snapshot, state.npages, self.params, is_step=triggers.is_step)
        if triggers.is_step:
            state = KsmtunedState(npages=npages, stepped_at_s=snapshot.taken_s)
        next_pass_s = seconds_until_step(snapshot.taken_s, state.stepped_at_s, self.params.monitor_interval)
        goes_on = all(getattr(snapshot.ksm.settings, name) == value for name, value in target.items())
        is_routine = goes_on and not triggers.is_step
        return Decision(target=target, reason=reason, next_pass_s=next_pass_s, is_routine=is_routine), state

    def quantities(self, snapshot: Snapshot, state: KsmtunedState, decision: Decision) -> Iterator[Quantity]:
        """Yield what may change the decision that has left `state` behind; after a hold, the next step is another."""
        from virtksm.policy.thresholds import TIMER

        rule, host, total_kib = decision.reason.rule, snapshot.host, snapshot.host.total_kib
        cached_kib = host.buffers_kib + host.cached_kib

        def asking(move: Callable[[int], Snapshot]) -> Callable[[int], str]:
            return lambda value: name_change(rule, self.decide(move(value), state, TIMER)[0].reason.rule)

        yield PASSED_S, 0, (0,), asking(lambda _: snapshot)
        if rule == "unknown":
            known = asking(lambda kib: replace(snapshot, host=replace(host, total_kib=kib)))
            yield "total_kib", total_kib, (1 if total_kib < 1 else MAX_TOTAL_KIB,), known
            return
        freed = asking(lambda kib: replace(snapshot, host=replace(host, free_kib=kib - cached_kib)))
        held = asking(lambda kib: replace(snapshot, guests=(Guest(uuid="all", name="all", rss_kib=kib),)))
        for end_kib in (0, total_kib):
            yield "free_kib", host.free_kib + cached_kib, (end_kib,), freed
            yield "committed_kib", snapshot.committed_kib, (end_kib,), held


def decide_settings(
    snapshot: Snapshot, npages: int, params: KsmtunedParams, *, is_step: bool
) -> tuple[Settings, Reason, int]:
    """Return the target, the reason and the new npages, by rules 1 to 7."""
    host = snapshot.host  # rule 2
    total_kib, free_kib = host.total_kib, host.free_kib + host.buffers_kib + host.cached_kib
    committed_kib = snapshot.committed_kib
    numbers: dict[str, Number] = {
        "total_kib": total_kib,
        "free_kib": free_kib,
        "committed_kib": committed_kib,
        "guests": len(snapshot.guests),
        "guests_unread": snapshot.guests_unread,
        "npages_before": npages,
        "npages": npages,
    }

    if not 0 < total_kib <= MAX_TOTAL_KIB:  # rule 1
        text = f"the host's total memory is given as {total_kib} KiB, so there is nothing to tune: ksmd idle"
        return IDLE, Reason(rule="unknown", text=text, numbers=numbers), npages

    thres_kib = threshold_kib(total_kib, params)  # rule 3
    sleep_ms = scaled_sleep_ms(total_kib, params)  # rule 4
    numbers |= {"thres_kib": thres_kib, "sleep_ms": sleep_ms}

    if committed_kib + thres_kib < total_kib and free_kib > thres_kib:  # rule 5
        text = (
            f"{in_mib(free_kib)} free, above the threshold of {in_mib(thres_kib)}; "
            f"guests hold {in_mib(committed_kib)} of {in_mib(total_kib)}: ksmd idle"
        )
        return IDLE, Reason(rule="stop", text=text, numbers=numbers), npages

    if is_step and free_kib < thres_kib:  # rule 6
        rule, delta = "boost", params.npages_boost
    elif is_step:
        rule, delta = "decay", params.npages_decay
    else:  # rule 7
        rule, delta = "hold", 0
    stepped = changed_npages(npages, delta, params)
    text = (
        f"{in_mib(free_kib)} free, threshold {in_mib(thres_kib)}; guests hold {in_mib(committed_kib)} "
        f"of {in_mib(total_kib)}: {rule} from {npages} to {stepped} pages every {sleep_ms} ms"
    )
    target = Settings(pages_to_scan=stepped, sleep_millisecs=sleep_ms)
    numbers["npages"] = stepped
    return target, Reason(rule=rule, text=text, numbers=numbers), stepped


def name_change(rule: str, new: str) -> str:
    """Return what a decision by the rule `new` does after one by `rule`; empty if all goes on."""
    return "" if new == rule else LEAVES.get(rule) or ENTERS[new]


def in_mib(kib: int) -> str:
    """Return KiB as text in MiB with one decimal; the exact figure is among the reason's numbers."""
    return f"{kib / 1024:.1f} MiB"


def threshold_kib(total_kib: int, params: KsmtunedParams) -> int:
    """Return the script's `thres` in KiB for a host of `total_kib` (rule 3)."""
    return max(total_kib * params.thres_coef // 100, params.thres_const)


def scaled_sleep_ms(total_kib: int, params: KsmtunedParams) -> int:
    """Return the script's `sleep` in ms, 10..4294967295, for a host of `total_kib` above 0 (rule 4)."""
    scaled = params.sleep_msec * SLEEP_REFERENCE_KIB // total_kib
    return min(max(scaled, MIN_SLEEP_MS), KERNEL_MAXIMUM)


def changed_npages(npages: int, delta: int, params: KsmtunedParams) -> int:
    """Return npages after a change by `delta` pages, as the script's `increase_npages` does (rule 6)."""
    npages += delta
    if npages < params.npages_min:
        return params.npages_min
    return min(npages, params.npages_max)


def seconds_until_step(now_s: float, stepped_at_s: float | None, interval_s: int) -> float:
    """Return the seconds until the next step is due, 0..`interval_s` (rule 8).

    A step in the future (the state of another boot) counts as one just made; without any, a whole interval is
    left, as ksmtuned sleeps before its first step.
    """
    if stepped_at_s is None:
        return float(interval_s)
    return min(max(stepped_at_s + interval_s - now_s, 0.0), float(interval_s))
