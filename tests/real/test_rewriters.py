"""A guest that rewrites what merges is taken out of KSM by the agent for a day: the kernel's own files say so."""

import json
from collections.abc import Sequence

import pytest

from bench.sim.real_memory import COMMON, MergeableProcess
from demo.guests import PAGES_PER_MIB, PayloadGuest
from tests.lab.fixtures import GuestFactory, RunningGuest, tiny
from tests.lab.guest_memory import merged_kib
from tests.lab.hang import HANG_S
from tests.lab.ksm import Ksm, merging_pages, wait_agreed, wait_until
from tests.lab.libvirtd import PrivateLibvirtd
from tests.real.agent_process import UNSETTLED_LAW, AgentFactory, AgentProcess, wait_until_covered
from tests.real.test_guest import BESIDE_KIB, COMMON_MIB, MEMORY_MIB, twin
from virtksm.host.local_facts import read_merged
from virtksm.paths import LOCAL, RuntimePaths
from virtksm.store.state import StateFile
from virtksm.values import replace

pytestmark = [pytest.mark.real, pytest.mark.needs("smart_scan")]
"""That came with Linux 6.7, as KSM in smaps did."""

REWRITE_PER_S = 2048
MOST_RESTS, MOST_PASSES = 20, 60


class Rests:
    """Rests of ksmd, each after full scans that a guest's start has caused, while those that rewrite stood still."""

    def __init__(self, agent: AgentProcess, guest: GuestFactory, calm: int, loud: Sequence[RunningGuest]) -> None:
        self._agent, self._guest, self._loud = agent, guest, loud
        self._guests = calm + len(loud)

    def begin(self) -> None:
        """Have all memory scanned once more, and those that rewrite go on then."""
        for one in self._loud:
            one.domain.suspend()
        self._guest(tiny(f"new-{self._guests}"))
        self._guests += 1
        self._agent.reload()
        wait_until_covered(self._agent, self._guests)
        for one in self._loud:
            one.domain.resume()

    def see(self) -> Sequence[str]:
        """Have passes until one has learned something of those that rewrite; return whom the policy takes out."""
        wait_until(lambda: all(map(has_rewritten, self._loud)), HANG_S, "the guests to rewrite what has merged")
        before = self._learned()
        for _ in range(MOST_PASSES):
            named: list[str] = self._agent.step()["decision"]["rewriters"]
            if self._learned() != before:
                break
        return named

    def _learned(self) -> object:
        state = json.loads(self._agent.home.state.read_text(encoding="utf-8"))["policy_state"]
        return {key: one["times"] for key, one in state["watched"].items()}, state["rewriters"]


def has_rewritten(guest: RunningGuest) -> bool:
    """Whether most of what ksmd counts as merged is mapped so no more, or has not merged in this rest at all."""
    counted_kib = merging_pages(guest.pid) * 4
    return merged_kib(guest.pid) * 2 < counted_kib or counted_kib < COMMON_MIB * 1024 // 2


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


@pytest.mark.timeout(300)  # of up to MOST_RESTS full scans
def test_a_guest_that_rewrites_what_merges_is_out_for_a_day_and_its_neighbours_stay_merged(
    ksm: Ksm, guest: GuestFactory, libvirtd: PrivateLibvirtd, start_agent: AgentFactory
) -> None:
    ksm.write(use_zero_pages=0, smart_scan=0)  # or what is rewritten is skipped for several full scans
    agent = start_agent(f"{UNSETTLED_LAW}exclude_rewriters = true\n")
    rewriting = {"image": 7, "rewrite_common_per_s": REWRITE_PER_S}
    calm_1, calm_2, *loud = guest.together(
        *(replace(twin(f"calm-{seed}", seed), memory_mib=2 * MEMORY_MIB, own_mib=MEMORY_MIB) for seed in (1, 2)),
        twin("loud-1", 3, **rewriting),
        twin("loud-2", 4, **rewriting),
    )
    rests = Rests(agent, guest, 2, loud)
    for _ in range(MOST_RESTS):
        rests.begin()
        if rests.see():
            break
    for one in loud:  # without its twin, the other one has nothing to merge, but may be named for what it has rewritten
        one.domain.suspend()

    def switched(event: str) -> list[str]:
        return sorted(line["guest"] for line in agent.lines(event))

    def unmerged() -> list[tuple[str, str]]:
        return sorted((one["name"], one["why"]) for one in agent.home.told("status")["switched"]["unmerged"])

    def named() -> list[str]:
        return sorted(agent.home.told("retune", "--dry-run")["decision"]["rewriters"])

    def told_and_named() -> tuple[object, object]:
        names = named()
        reason = agent.home.told("status")["last_pass"]["decision"]["reason"]
        (judged,) = agent.home.told("doctor", "--only", "rewriters", "--connect", libvirtd.uri)["findings"]
        told = [
            switched("guest_unmerged"),
            unmerged(),
            reason.rpartition("; ")[2],
            sorted(judged["detail"].removeprefix("kept out for a day: ").split(", ")),
        ]
        words = f"guests that are out for a day, as they rewrite what merges: {len(names)}"
        return told, [names, [(one, "rewrites") for one in names], words, names]

    wait_agreed(told_and_named, HANG_S, "log, status, doctor and a dry run to name the same")
    names = named()
    out = [one for one in loud if one.spec.name in names]
    assert out
    rests.begin()
    assert [merged_kib(one.pid) < BESIDE_KIB for one in out] == [True] * len(out)
    assert [merged_kib(one.pid) >= COMMON_MIB * 1024 for one in (calm_1, calm_2)] == [True, True]

    agent.kill()
    store = StateFile(RuntimePaths(str(agent.home.runtime_dir)), LOCAL)
    state = store.load()
    assert state.policy_state is not None
    over = dict.fromkeys(state.policy_state["rewriters"], 0.0)  # type: ignore[call-overload]  # by Guest.key
    store.save(replace(state, policy_state={**state.policy_state, "rewriters": over}))
    agent = start_agent(None)
    wait_until(lambda: {*names} <= {*switched("guest_merging")}, HANG_S, f"{names} to merge again after their day")
    shown = [agent.home.told("guest", "show", name, "--connect", libvirtd.uri) for name in names]
    assert all(one["mergeable_bytes"] >= MEMORY_MIB << 20 for one in shown)
    wait_until(lambda: unmerged() == [], HANG_S, "the status to tell it")
