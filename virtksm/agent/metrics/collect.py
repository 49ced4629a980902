"""The metrics' values at one moment, from the agent's own knowledge. Asks nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from virtksm.agent.metrics.counters import RESULTS, Durations, Tally
from virtksm.agent.metrics.guests import GuestSavings, ShownGuests
from virtksm.agent.status import AgentFacts, worst_core_percent
from virtksm.model.current import CurrentKsm
from virtksm.model.report import PassReport
from virtksm.policy.adaptive.state import load_state

Labels = tuple[str, ...]
Value = int | float | Durations
Measures = dict[str, Mapping[Labels, Value]]
"""By the metric's name, then by the values of its labels; a metric without a known value is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What the agent knows at one moment; `started_at_s` is Unix time.

    `savings` is None where guests' processes cannot be read; at most `max_guests` have a metric of their own.
    `profit_bytes` is the kernel's general_profit, None where it is unknown.
    """

    agent: AgentFacts
    tally: Tally
    savings: GuestSavings | None
    profit_bytes: int | None
    shown: ShownGuests
    max_guests: int
    python: str
    started_at_s: float


def measure(moment: Moment) -> Measures:
    """Return all values, texts for labels as they are; `shown` keeps the choice of guests."""
    agent, tally = moment.agent, moment.tally
    found: Measures = {
        "virtksm_build_info": {(agent.version, moment.python): 1},
        "virtksm_policy_info": {(agent.policy,): 1},
        "virtksm_passes_total": {(result,): count for result, count in tally.passes.items()},
        "virtksm_pass_triggers_total": tally.by_trigger,
        "virtksm_decisions_total": {(rule,): count for rule, count in tally.decisions.items()},
        "virtksm_last_pass_result": {(result,): int(result == tally.last_result) for result in RESULTS},
        "virtksm_conflicts_total": {(parameter,): count for parameter, count in tally.conflicts.items()},
        "virtksm_refusals_total": tally.refusals,
        "virtksm_crashes_total": {(cost,): count for cost, count in tally.crashes.items()},
    }
    plain: dict[str, Value | None] = {
        "virtksm_up": 1,
        "virtksm_start_time_seconds": moment.started_at_s,
        "virtksm_config_last_reload_successful": tally.config_is_read,
        "virtksm_pass_duration_seconds": tally.durations,
        "virtksm_event_to_applied_seconds": tally.latencies,
        "virtksm_last_pass_timestamp_seconds": tally.last_at_s,
        "virtksm_history_failures_total": tally.history_failures,
        "virtksm_libvirt_connected": agent.lost_s is None,
        "virtksm_libvirt_answers": agent.silence is None,
        "virtksm_libvirt_reconnects_total": max(tally.connections - 1, 0),
        "virtksm_switched_off": tally.is_off,
        "virtksm_stranded_possible": agent.may_be_stranded,
        "virtksm_private_guests_exposed": tally.exposed,
        "virtksm_profit_bytes": moment.profit_bytes,
    }
    if agent.last is not None:
        plain["virtksm_idle"] = agent.last.decision.is_idle
        plain["virtksm_worst_core_ratio"] = worst_core_percent(agent.last.after) / 100
        found["virtksm_backlog_bytes"] = find_backlog(agent.last)
    if agent.current is not None:
        plain |= _of_host(agent.current, is_off=tally.is_off)
    if moment.savings is not None:
        shown, other_bytes = moment.shown.choose(moment.savings.saved, moment.max_guests)
        found["virtksm_guest_saved_bytes"] = shown
        plain |= {
            "virtksm_guests_other_saved_bytes": other_bytes,
            "virtksm_unattributed_saved_bytes": moment.savings.unattributed_bytes,
            "virtksm_guests_unaccounted": moment.savings.unaccounted,
        }
    found |= {name: {(): value} for name, value in plain.items() if value is not None}
    return found


def _of_host(current: CurrentKsm, *, is_off: bool | None) -> dict[str, Value | None]:
    """Return KSM, the host's memory and its guests."""
    ksm, host = current.ksm, current.host
    return {
        "virtksm_ksm_off_while_wanted": None if ksm.run is None or is_off is None else ksm.run != 1 and not is_off,
        "virtksm_saved_bytes": _bytes(current.saved_kib),
        "virtksm_zero_pages_bytes": _bytes(ksm.zero_kib),
        "virtksm_ksmd_cpu_seconds_total": ksm.ksmd_cpu_seconds,
        "virtksm_cow_break_bytes_total": None if ksm.cow_ksm is None else _bytes(ksm.kib(ksm.cow_ksm)),
        "virtksm_unmerging_bytes": _bytes(ksm.unmerge_kib),
        "virtksm_guests": current.guests,
        "virtksm_guests_unread": current.guests_unread,
        "virtksm_guests_resident_bytes": _bytes(current.committed_kib),
        "virtksm_host_memory_bytes": None if host is None else _bytes(host.total_kib),
        "virtksm_host_available_bytes": None if host is None else _bytes(host.available_kib),
        "virtksm_host_swap_free_bytes": None if host is None else _bytes(host.swap_free_kib),
    }


def find_backlog(report: PassReport) -> dict[Labels, Value]:
    """Return the adaptive policy's backlog after a pass, by state; nothing where another policy decided, or none."""
    if report.policy != "adaptive" or report.state_after is None:
        return {}
    try:
        backlog = load_state(report.state_after).backlog
    except ValueError:  # switched off: the policy was not asked
        return {}
    backlog_kib = {
        "settling": backlog.settling_kib,
        "new": backlog.new_kib,
        "scanned_once": backlog.scanned_once_kib,
        "exited": backlog.exited_kib,
    }
    return {(state,): kib * 1024 for state, kib in backlog_kib.items()}


def _bytes(kib: int | None) -> int | None:
    return None if kib is None else kib * 1024
