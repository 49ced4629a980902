"""Every metric with its kind, meaning, labels and value: the one table from which exposition and docs follow.

Names follow Prometheus: base units, `_total` for counters. KSM's settings and counters as they are in sysfs are left to
node_exporter's ksmd collector.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from virtksm import __version__
from virtksm.agent.metrics.counters import RESULTS, Durations, Tally
from virtksm.agent.metrics.guests import GuestSavings
from virtksm.agent.status import AgentFacts, worst_core_percent
from virtksm.model.current import CurrentKsm
from virtksm.model.snapshot import HostMemory
from virtksm.policy.adaptive.state import load_state
from virtksm.text import to_bytes

Kind = Literal["counter", "gauge", "histogram"]
Labels = tuple[str, ...]
Value = int | float | Durations
Values = Mapping[Labels, Value]
"""By the values of the metric's labels, texts as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What the agent knows at one moment; `started_at_s` is Unix time.

    `savings` is None where guests' processes cannot be read, `profit_bytes` where the kernel has no general_profit.
    """

    agent: AgentFacts
    tally: Tally
    savings: GuestSavings | None
    profit_bytes: int | None
    started_at_s: float


Read = Callable[[Moment], Values | Value | None]
"""Gives a metric's values, or the value of one without labels; None is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric; a counter's name ends in _total."""

    name: str
    kind: Kind
    meaning: str
    labels: Labels = ()
    read: Read


def measure(moment: Moment) -> dict[str, Values]:
    """Return the values of each metric by its name; one without a known value is missing."""
    found = ((metric.name, metric.read(moment)) for metric in METRICS)
    return {name: value if isinstance(value, Mapping) else {(): value} for name, value in found if value is not None}


def _counter(name: str, meaning: str, read: Read, *labels: str) -> Metric:
    return Metric(name=f"virtksm_{name}_total", kind="counter", meaning=meaning, labels=labels, read=read)


def _gauge(name: str, meaning: str, read: Read, *labels: str) -> Metric:
    return Metric(name=f"virtksm_{name}", kind="gauge", meaning=meaning, labels=labels, read=read)


def _histogram(name: str, meaning: str, read: Read) -> Metric:
    return Metric(name=f"virtksm_{name}", kind="histogram", meaning=meaning, read=read)


def _by_one(values: Mapping[str, int]) -> Values:
    return {(label,): value for label, value in values.items()}


def _ksm(read: Callable[[CurrentKsm], Value | None]) -> Read:
    return lambda at: None if at.agent.current is None else read(at.agent.current)


def _host(read: Callable[[HostMemory], int | None]) -> Read:
    return _ksm(lambda current: None if current.host is None else to_bytes(read(current.host)))


def _savings(read: Callable[[GuestSavings], Values | int]) -> Read:
    return lambda at: None if at.savings is None else read(at.savings)


def _ksm_off_while_wanted(at: Moment) -> bool | None:
    run = None if at.agent.current is None else at.agent.current.ksm.run
    if run is None or at.tally.is_off is None:
        return None
    return run != 1 and not at.tally.is_off and at.agent.policy != "observe"


def _room(at: Moment) -> Values | None:
    room_kib = at.agent.known_room_kib
    return None if room_kib is None else {(name,): kib * 1024 for name, kib in room_kib.items()}


def _cow_break_bytes(current: CurrentKsm) -> int | None:
    ksm = current.ksm
    return None if ksm.cow_ksm is None else to_bytes(ksm.kib(ksm.cow_ksm))


def _backlog(at: Moment) -> Values | None:
    """Return the adaptive policy's backlog after a pass, by state; nothing where another policy decided, or none."""
    report = at.agent.last
    if report is None:
        return None
    if report.policy not in ("adaptive", "observe") or report.state_after is None:
        return {}
    try:
        backlog = load_state(report.state_after).backlog
    except ValueError:  # paused: the policy was not asked
        return {}
    states = ("settling", "new", "scanned_once", "exited")
    return {(state,): getattr(backlog, f"{state}_kib") * 1024 for state in states}


METRICS = (
    _gauge("up", "1: the agent runs.", lambda _at: 1),
    _gauge("build_info", "Always 1.",
           lambda at: {(__version__, platform.python_version()): 1}, "version", "python"),
    _gauge("policy_info", "Always 1, for the policy in force.", lambda at: {(at.agent.policy,): 1}, "policy"),
    _gauge("start_time_seconds", "The agent's start, in Unix time.",
           lambda at: at.started_at_s),
    _gauge("config_last_reload_successful", "0: the last reload was rejected.",
           lambda at: at.tally.config_is_read),
    # Passes and decisions.
    _counter("passes", "Passes, without dry runs.",
             lambda at: _by_one(at.tally.passes.by_result), "result"),
    _counter("pass_triggers", "Passes, once for each trigger.",
             lambda at: at.tally.passes.by_trigger, "trigger", "result"),
    _counter("decisions", "Decisions, by rule.",
             lambda at: _by_one(at.tally.passes.by_rule), "rule"),
    _histogram("pass_duration_seconds", "From a pass's lock to its last read-back.",
               lambda at: at.tally.passes.durations),
    _histogram("event_to_applied_seconds", "From a pass's first trigger to its end.",
               lambda at: at.tally.passes.latencies),
    _gauge("last_pass_timestamp_seconds", "End of the last pass that did not fail.",
           lambda at: at.tally.passes.last_at_s),
    _gauge("last_pass_result", "1 for the last pass's result, else 0.",
           lambda at: {(result,): int(result == at.tally.passes.last_result) for result in RESULTS}, "result"),
    _counter("conflicts", "Values that another program has set.",
             lambda at: _by_one(at.tally.passes.conflicts), "parameter"),
    _counter("refusals", "Settings that the kernel or libvirt refused.",
             lambda at: at.tally.passes.refusals, "parameter", "cause"),
    _counter("crashes", "Unforeseen exceptions, by what they cost.",
             lambda at: _by_one(at.tally.crashes), "cost"),
    _counter("history_failures", "The history could not be written.", lambda at: at.tally.history_failures),
    # libvirt.
    _gauge("libvirt_connected", "1: connected.", lambda at: at.agent.lost_s is None),
    _gauge("libvirt_answers", "0: not connected, or a call takes more than 2 s.",
           lambda at: at.agent.silence is None),
    _counter("libvirt_reconnects", "Connections after the first one.",
             lambda at: max(at.tally.connections - 1, 0)),
    # KSM.
    _gauge("paused", "1: `virtksm pause` is in force.", lambda at: at.tally.is_off),
    _gauge("ksm_off_while_wanted", "1: `run` is not 1, and virtksm neither is paused nor observes.",
           _ksm_off_while_wanted),
    _gauge("idle", "1: the last decision was to idle.",
           lambda at: None if at.agent.last is None else at.agent.last.decision.is_idle),
    _gauge("saved_bytes", "Memory saved by shared pages, zero pages and split huge pages.",
           _ksm(lambda current: to_bytes(current.saved_kib))),
    _gauge("zero_pages_bytes", "Merged zero pages, which resident memory does not count.",
           _ksm(lambda current: to_bytes(current.ksm.zero_kib))),
    _gauge("freed_bytes", "Memory that split huge pages gave back, by estimate.",
           _ksm(lambda current: to_bytes(current.ksm.freed_kib))),
    _counter("ksmd_cpu_seconds", "ksmd's CPU time since boot.", _ksm(lambda current: current.ksm.ksmd_cpu_seconds)),
    _counter("cow_break_bytes", "COW breaks since boot (cow_ksm).", _ksm(_cow_break_bytes)),
    _gauge("places_per_page", "Places that a merged page serves on average.",
           _ksm(lambda current: current.ksm.places_per_page)),
    _gauge("unmerging_bytes", "Memory that unmerging everything takes.",
           _ksm(lambda current: to_bytes(current.ksm.unmerge_kib))),
    _gauge("backlog_bytes",
           "Backlog: settling, new, scanned_once or exited (adaptive).",
           _backlog, "state"),
    _gauge("stranded_possible", "1: ksmd may be scanning while libvirt is silent.",
           lambda at: at.agent.may_be_stranded),
    _gauge("worst_core_ratio", "The most of a core that ksmd can take by its settings.",
           lambda at: None if at.agent.last is None else worst_core_percent(at.agent.last) / 100),
    # The host and its guests.
    _gauge("guests", "Running guests.", _ksm(lambda current: current.guests)),
    _gauge("guests_unread", "Guests whose memory could not be read.",
           _ksm(lambda current: current.guests_unread)),
    _gauge("guests_resident_bytes", "Resident memory of guests, as far as read.",
           _ksm(lambda current: to_bytes(current.committed_kib))),
    _gauge(
        "host_memory_bytes",
        "Memory that guests can share (docs/policies.md).",
        _host(lambda host: host.usable_kib),
    ),
    _gauge(
        "host_available_bytes",
        "Memory that is available to guests.",
        _host(lambda host: host.spare_kib),
    ),
    _gauge(
        "host_swap_free_bytes",
        "Free swap that can take guests' memory.",
        _host(lambda host: host.spare_swap_kib),
    ),
    _gauge("room_bytes", "Room for more guest memory, steadied (docs/metrics.md).",
           _room, "assumption"),
    _gauge("private_guests_exposed", "Private guests that can merge; missing until all XML is read.",
           lambda at: at.tally.exposed),
    _gauge("groups_mixed",
           "Groups that can merge with another; guests without one are one.",
           lambda at: at.tally.mixed_groups),
    _gauge("guests_unmerged", "Guests unmerged while they run, by the agent or a command.",
           lambda at: sum(not one.merge for one in at.agent.switched.values())),
    _gauge("guests_unswitched", "Guests that the agent failed to unmerge or let merge.",
           lambda at: len(at.agent.unswitched)),
    _gauge("rewriters", "Guests to be out by exclude_rewriters.",
           lambda at: None if at.agent.last is None else len(at.agent.last.decision.rewriters)),
    # KSM's savings by guest, at the moment of asking, where guests' processes may be read.
    _gauge("guest_saved_bytes", "Memory saved on a guest.",
           _savings(lambda savings: savings.shown), "domain", "uuid"),
    _gauge("guests_other_saved_bytes", "Memory saved on all other guests.",
           _savings(lambda savings: savings.other_bytes)),
    _gauge("unattributed_saved_bytes",
           "Memory saved on guests not read, other processes, exited ones.",
           _savings(lambda savings: savings.unattributed_bytes)),
    _gauge("guests_unaccounted", "Guests whose savings cannot be read.",
           _savings(lambda savings: savings.unaccounted)),
    _gauge("profit_bytes", "Savings less KSM's bookkeeping: general_profit and virtksm_freed_bytes.",
           lambda at: at.profit_bytes),
)  # fmt: skip
