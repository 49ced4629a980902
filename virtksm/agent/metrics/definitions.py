"""Every metric with its kind, its meaning and its labels: the one table from which exposition and docs follow. Pure.

Names follow Prometheus: base units, `_total` for counters. KSM's settings and counters as they are in sysfs are left to
node_exporter's ksmd collector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric; a counter's name ends in _total."""

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()


def _counter(name: str, meaning: str, *labels: str) -> Metric:
    return Metric(name=f"virtksm_{name}_total", kind="counter", meaning=meaning, labels=labels)


def _gauge(name: str, meaning: str, *labels: str) -> Metric:
    return Metric(name=f"virtksm_{name}", kind="gauge", meaning=meaning, labels=labels)


def _histogram(name: str, meaning: str) -> Metric:
    return Metric(name=f"virtksm_{name}", kind="histogram", meaning=meaning)


METRICS = (
    _gauge("up", "1: the agent runs."),
    _gauge("build_info", "1, with the agent's version and Python.", "version", "python"),
    _gauge("policy_info", "1, with the policy in force.", "policy"),
    _gauge("start_time_seconds", "When the agent started, in Unix time."),
    _gauge("config_last_reload_successful", "0: the last reload was rejected."),
    # Passes and decisions.
    _counter("passes", "Passes, without dry runs.", "result"),
    _counter("pass_triggers", "Passes; one counts once for each of its triggers.",
             "trigger", "result"),
    _counter("decisions", "Decisions, by the rule that fired.", "rule"),
    _histogram("pass_duration_seconds", "Passes, from the lock to the last read-back."),
    _histogram("event_to_applied_seconds", "From a pass's first trigger to its end."),
    _gauge("last_pass_timestamp_seconds", "When the last pass ended that did not fail."),
    _gauge("last_pass_result", "1 for the result of the last pass, else 0.", "result"),
    _counter("conflicts", "Values found that another program has set.", "parameter"),
    _counter("refusals", "Settings that the kernel or libvirt refused.", "parameter", "cause"),
    _counter("crashes", "Unforeseen exceptions that cost a pass, request or task.", "cost"),
    _counter("history_failures", "Failed writings of the history."),
    # libvirt.
    _gauge("libvirt_connected", "1: connected to libvirt."),
    _gauge("libvirt_answers", "0: not connected, or a call takes more than 2 s."),
    _counter("libvirt_reconnects", "Connections to libvirt after the first one."),
    # KSM.
    _gauge("switched_off", "1: switched off by `virtksm off`."),
    _gauge("ksm_off_while_wanted", "1: KSM is off (run is not 1) and virtksm is switched on."),
    _gauge("idle", "1: the last decision was to let ksmd idle."),
    _gauge("saved_bytes", "Memory that merging saves, zero pages included."),
    _gauge("zero_pages_bytes", "Merged zero pages, which resident memory does not count."),
    _counter("ksmd_cpu_seconds", "CPU time of ksmd since boot."),
    _counter("cow_break_bytes", "Merged memory written to since boot (cow_ksm): COW breaks."),
    _gauge("unmerging_bytes", "Memory that unmerging everything would take."),
    _gauge("backlog_bytes",
           "Memory not scanned as often as merging needs (adaptive): settling, new, scanned_once, exited.", "state"),
    _gauge("stranded_possible", "1: ksmd may go on scanning while libvirt is silent."),
    _gauge("worst_core_ratio", "The most of one core that ksmd can take by its settings."),
    # The host and its guests.
    _gauge("guests", "Running guests."),
    _gauge("guests_unread", "Guests whose memory could not be read."),
    _gauge("guests_resident_bytes", "Resident memory of guests that could be read."),
    _gauge("host_memory_bytes", "The host's memory."),
    _gauge("host_available_bytes", "The host's available memory."),
    _gauge("host_swap_free_bytes", "The host's free swap."),
    _gauge("private_guests_exposed", "Private guests that can merge; absent until all XML is read."),
    # KSM's savings by guest, at the moment of asking, where guests' processes may be read.
    _gauge("guest_saved_bytes", "Memory saved on a guest.",
           "domain", "uuid"),
    _gauge("guests_other_saved_bytes", "Memory saved on all other guests."),
    _gauge("unattributed_saved_bytes",
           "The rest of the memory saved: on guests not read, other processes, exited ones."),
    _gauge("guests_unaccounted", "Guests whose savings cannot be read."),
    _gauge("profit_bytes", "general_profit: savings less KSM's bookkeeping."),
)  # fmt: skip
