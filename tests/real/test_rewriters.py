"""A guest that rewrites what merges is taken out of KSM by the agent for a day: the kernel's own files say so."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import pytest

from bench.sim.real_memory import COMMON, MergeableProcess
from demo.guests import PAGES_PER_MIB, PayloadGuest
from tests.lab.fixtures import GuestFactory, RunningGuest, tiny
from tests.lab.ksm import Ksm, wait_until
from tests.lab.libvirtd import PrivateLibvirtd
from tests.real.agent_process import HANG_S, UNSETTLED_LAW, AgentFactory, AgentProcess
from tests.real.test_guest import BESIDE_KIB, COMMON_MIB, MEMORY_MIB, merged_kib, twin
from virtksm.host.local_facts import read_merged
from virtksm.paths import LOCAL, RuntimePaths
from virtksm.policy.adaptive.rewriters import REPEATS
from virtksm.store.state import StateFile
from virtksm.values import replace

pytestmark = [pytest.mark.real, pytest.mark.needs("smart_scan")]
"""That came with Linux 6.7, as KSM in smaps did."""

REWRITING = {"image": 7, "rewrite_common_per_s": 2048}
MOST_PAIRS, MOST_RESTS, MOST_SCANS, MOST_PASSES = 9, 6, 4, 60


class Rests:
    """Rests of ksmd, each after full scans that other guests have caused, while two that rewrite stood still."""

    def __init__(self, agent: AgentProcess, guest: GuestFactory) -> None:
        self._agent, self._guest, self._numbers = agent, guest, itertools.count()

    def scan(self) -> None:
        """Have all memory scanned, as a guest has come and gone."""
        brief = self._guest(tiny(f"brief-{next(self._numbers)}"))
        self._agent.step()
        brief.domain.destroy()
        self._agent.sweep()

    def name_two(self) -> list[RunningGuest]:
        """Return two guests that the policy has named, as they have rewritten what merged.

        smart_scan skips what was rewritten. Old twins may be skipped in different full scans, and merge no more: then
        two others begin.
        """
        for pair in range(MOST_PAIRS):
            loud = self._guest.together(*(twin(f"loud-{pair}-{seed}", seed, **REWRITING) for seed in (3, 4)))
            for _ in range(MOST_RESTS):
                if not self._rewrite(loud):
                    break
                if self._are_named(loud):
                    return loud
            for one in loud:
                one.crash()
        raise AssertionError(f"none of {MOST_PAIRS} pairs of guests that rewrite was named")

    def _rewrite(self, loud: Sequence[RunningGuest]) -> bool:
        """Have them rewrite what has merged, and stand still before and after that; False where it does not merge."""
        for one in loud:
            one.domain.suspend()
        for _ in range(MOST_SCANS):
            self.scan()
            if all(merged_kib(one.pid) * 2 > COMMON_MIB * 1024 for one in loud):
                break
        else:
            return False
        for one in loud:
            one.domain.resume()
        wait_until(lambda: all(map(has_rewritten, loud)), HANG_S, "the guests to rewrite what has merged")
        for one in loud:
            one.domain.suspend()
        return True

    def _are_named(self, loud: Sequence[RunningGuest]) -> bool:
        """Have passes until they have counted what was rewritten; return whether all are named."""
        before = self._counted()
        for _ in range(MOST_PASSES):
            named = self._agent.step()["decision"]["rewriters"]
            if self._counted() >= before + len(loud):
                break
        return bool(named == [one.spec.name for one in loud])

    def _counted(self) -> int:
        state = json.loads(self._agent.home.state.read_text(encoding="utf-8"))["policy_state"]
        times: list[int] = [one["times"] for one in state["watched"].values()]
        return sum(times) + REPEATS * len(state["rewriters"])


def has_rewritten(guest: RunningGuest) -> bool:
    """Whether most of what had merged is mapped so no more."""
    return merged_kib(guest.pid) * 4 < COMMON_MIB * 1024


def test_ksmd_goes_on_counting_what_is_written_to_and_the_kernel_maps_it_no_more(ksm: Ksm) -> None:
    pages = 2 * COMMON_MIB * PAGES_PER_MIB
    spec = PayloadGuest(name="", memory_mib=MEMORY_MIB, common_mib=2 * COMMON_MIB)
    with MergeableProcess(spec) as one, MergeableProcess(spec) as other:
        ksm.merge_all()
        assert [read_merged(process.pid) for process in (one, other)] == [(pages, pages * 4)] * 2
        one.write(COMMON, 0, pages // 2, 1)
        assert [read_merged(process.pid) for process in (one, other)] == [(pages, pages * 2), (pages, pages * 4)]
        ksm.merge_all()
        assert read_merged(one.pid) == (pages // 2, pages * 2)


def test_a_guest_that_rewrites_what_merges_is_out_for_a_day_and_its_neighbours_stay_merged(
    guest: GuestFactory, libvirtd: PrivateLibvirtd, start_agent: AgentFactory
) -> None:
    """With huge pages and smart_scan, as QEMU and the kernel have them by default."""
    agent = start_agent(f"{UNSETTLED_LAW}cpu_percent = 100\nmax_cpu_percent = 100\nexclude_rewriters = true\n")
    calm = guest.together(
        *(replace(twin(f"calm-{seed}", seed), memory_mib=2 * MEMORY_MIB, own_mib=MEMORY_MIB) for seed in (1, 2))
    )
    rests = Rests(agent, guest)
    loud = rests.name_two()
    names = [one.spec.name for one in loud]

    def switched(event: str) -> list[str]:
        return sorted(line["guest"] for line in agent.lines(event))

    wait_until(lambda: switched("guest_unmerged") == names, HANG_S, f"{names} to be unmerged")
    told = agent.home.told("status")
    assert [(one["name"], one["why"]) for one in told["switched"]["unmerged"]] == [(one, "rewrites") for one in names]
    assert "; guests that are out for a day, as they rewrite what merges: 2" in told["last_pass"]["decision"]["reason"]
    judged = agent.home.told("doctor", "--only", "rewriters", "--connect", libvirtd.uri)["findings"]
    assert [one["detail"] for one in judged] == [f"kept out for a day: {', '.join(names)}"]
    assert agent.home.told("retune", "--dry-run")["decision"]["rewriters"] == names
    rests.scan()
    assert [merged_kib(one.pid) < BESIDE_KIB for one in loud] == [True, True]
    assert [merged_kib(one.pid) > COMMON_MIB * 1024 * 9 // 10 for one in calm] == [True, True]

    agent.kill()
    store = StateFile(RuntimePaths(str(agent.home.runtime_dir)), LOCAL)
    state = store.load()
    assert state.policy_state is not None
    over = dict.fromkeys(state.policy_state["rewriters"], 0.0)  # type: ignore[call-overload]  # by Guest.key
    store.save(replace(state, policy_state={**state.policy_state, "rewriters": over}))
    agent = start_agent(None)
    wait_until(lambda: switched("guest_merging") == names, HANG_S, f"{names} to merge again after their day")
    shown = [agent.home.told("guest", "show", name, "--connect", libvirtd.uri) for name in names]
    assert all(one["mergeable_bytes"] >= MEMORY_MIB << 20 for one in shown)
    assert agent.home.told("status")["switched"]["unmerged"] == []
