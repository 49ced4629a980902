"""The simulated host's own /proc and /sys: LocalFacts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from virtksm.model.snapshot import Guest, HostMemory, OtherProcesses

if TYPE_CHECKING:
    from bench.sim.host import SimHost

CPU_TICK_S = 0.01
"""/proc tells CPU time in hundredths of a second."""


class SimFacts:
    """LocalFacts of a SimHost."""

    trouble: tuple[str, ...] = ()

    def __init__(self, host: SimHost) -> None:
        self._host = host

    def guests(self, running: tuple[Guest, ...]) -> tuple[Guest, ...]:
        now_s = self._host.now_s
        seen = {guest.uuid: guest for guest in self._host.guests_by_name.values()}
        for guest in seen.values():
            guest.measure_dirty(now_s)
        return tuple(
            replace(one, rss_kib=seen[one.uuid].rss_kib(now_s), dirty_kib_per_s=seen[one.uuid].dirty_kib_per_s)
            if one.uuid in seen
            else one
            for one in running
        )

    def other_processes_memory(self, running: tuple[Guest, ...]) -> OtherProcesses | None:
        other_processes_kib = [
            process.rss_kib(self._host.now_s) for process in self._host.other_processes_by_name.values()
        ]
        if self._host.hides_other_processes:
            return OtherProcesses(kib=0, processes=0, unread=len(other_processes_kib))
        return OtherProcesses(kib=sum(other_processes_kib), processes=len(other_processes_kib), unread=0)

    def host_memory(self) -> HostMemory:
        memory = self._host.host_memory()
        return replace(memory, available_kib=memory.free_kib)

    def ksmd_cpu_seconds(self) -> float | None:
        return int(self._host.ksmd.cpu_seconds / CPU_TICK_S + 1e-9) * CPU_TICK_S

    def ksm_counter(self, name: str) -> int | None:
        ksmd = self._host.ksmd
        has_smart_scan = ksmd.rules.smart_scan
        files = {
            "run": 1,
            "pages_to_scan": ksmd.pages_to_scan,
            "sleep_millisecs": ksmd.sleep_millisecs,
            "merge_across_nodes": self._host.merge_across_nodes,
            "full_scans": ksmd.full_scans,
            "pages_shared": ksmd.trees.pages_shared,
            "pages_sharing": ksmd.trees.pages_sharing,
            "pages_unshared": ksmd.trees.pages_unshared,
            "pages_volatile": ksmd.trees.pages_volatile,
            "pages_scanned": ksmd.pages_scanned,
            "pages_skipped": ksmd.pages_skipped if has_smart_scan else None,
            "smart_scan": 1 if has_smart_scan else None,
            "use_zero_pages": 0,
            "ksm_zero_pages": 0,
        }
        return files.get(name)

    def vm_counters(self, *names: str) -> tuple[int | None, ...]:
        host = self._host
        for process in host.processes:
            process.catch_up(host.ksmd.trees, host.now_s)
        return tuple(host.ksmd.trees.cow_ksm if name == "cow_ksm" else None for name in names)

    def page_kib(self) -> int:
        return 4

    def advisor_mode(self) -> str | None:
        return "none"
