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
    _gauge("build_info", "1, labelled with the agent's version and the Python that runs it.", "version", "python"),
    _gauge("policy_info", "1, labelled with the policy in force.", "policy"),
    _gauge("start_time_seconds", "When the agent started, in Unix time; all that it counts begins there."),
    _gauge("config_last_reload_successful", "0: the configuration was rejected at the last reload, the old one holds."),
    # Passes and decisions.
    _counter("passes", "Passes by result; dry runs do not count.", "result"),
    _counter("pass_triggers", "Passes by trigger and result; one counts once for each of its triggers.",
             "trigger", "result"),
    _counter("decisions", "Decisions, by the policy's rule that fired.", "rule"),
    _histogram("pass_duration_seconds", "How long passes took, from the lock to the last read-back."),
    _histogram("event_to_applied_seconds", "From a pass's first trigger to its end."),
    _gauge("last_pass_timestamp_seconds", "When the last pass ended that did not fail, in Unix time."),
    _gauge("last_pass_result", "1 for the result of the last pass, 0 for the other results.", "result"),
    _counter("conflicts", "Foreign values found, set by another program, by parameter.", "parameter"),
    _counter("refusals", "Settings that the kernel or libvirt refused, by parameter and cause.", "parameter", "cause"),
    _counter("crashes", "Unforeseen exceptions, by what each of them cost: pass, request or task.", "cost"),
    _counter("history_failures", "Writings of the agent's history that failed."),
    # libvirt.
    _gauge("libvirt_connected", "1: there is a connection to libvirt."),
    _gauge("libvirt_answers", "0: there is no connection, or a call has not returned for more than 2 s."),
    _counter("libvirt_reconnects", "Connections to libvirt after the first one."),
    # KSM.
    _gauge("switched_off", "1: switched off by `virtksm off`."),
    _gauge("ksm_off_while_wanted", "1: KSM is off on the host (run is not 1) although virtksm is switched on."),
    _gauge("idle", "1: the last decision was to let ksmd idle."),
    _gauge("saved_bytes", "Memory that merging saves, zero pages included."),
    _gauge("zero_pages_bytes", "Merged zero pages, which are in no resident memory; all other merged pages are."),
    _counter("ksmd_cpu_seconds", "CPU time of ksmd since boot."),
    _counter("cow_break_bytes", "Merged memory written to since boot (cow_ksm): COW breaks."),
    _gauge("unmerging_bytes", "Memory that unmerging all that is merged would take."),
    _gauge("backlog_bytes",
           "Memory not scanned as often as merging needs (policy adaptive): settling, new, scanned_once, or exited (of "
           "guests that have stopped).", "state"),
    _gauge("stranded_possible", "1: ksmd may go on scanning while libvirt, which alone can slow it down, is silent."),
    _gauge("worst_core_ratio", "The most that ksmd can take of one core with the settings read back last."),
    # The host and its guests.
    _gauge("guests", "Running guests."),
    _gauge("guests_unread", "Running guests whose memory could not be read."),
    _gauge("guests_resident_bytes", "Memory that guests hold resident, of those whose memory could be read."),
    _gauge("host_memory_bytes", "The host's memory."),
    _gauge("host_available_bytes", "The host's available memory."),
    _gauge("host_swap_free_bytes", "The host's free swap."),
    _gauge("private_guests_exposed", "Guests declared private that can merge; absent until the XML of all is read."),
    # KSM's savings by guest, at the moment of asking, where guests' processes may be read.
    _gauge("guest_saved_bytes", "Memory that merging saves on a guest, for as many guests as the configuration says.",
           "domain", "uuid"),
    _gauge("guests_other_saved_bytes", "The same for all other guests together."),
    _gauge("unattributed_saved_bytes",
           "The rest of the memory saved: on guests that may not be read, on other processes, on exited ones."),
    _gauge("guests_unaccounted", "Running guests whose savings cannot be read."),
    _gauge("profit_bytes", "KSM's general_profit: what merging saves less KSM's bookkeeping; may be negative."),
)  # fmt: skip
