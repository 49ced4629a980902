"""Texts of the kernel, of processes, of the kept state, and pokes: whatever they hold, only documented errors come out.

What was found is kept as examples.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.fakes import FakeClock, FakeFacts, FakeHypervisor, FakeSwitch
from virtksm.config.schema import Config, all_keys
from virtksm.errors import SensingFailed, StateUnusable
from virtksm.host.guest_processes import is_named, parse_guest_group, parse_guest_uuid
from virtksm.host.local_facts import ProcFacts, parse_choice, parse_meminfo, parse_vmstat
from virtksm.host.other_processes import parse_group, parse_groups
from virtksm.host.proc_files import parse_counter, parse_memory_kib, parse_owner, parse_process_ksm, parse_stat
from virtksm.model.decision import Trigger, Triggers
from virtksm.model.snapshot import KERNEL_MAXIMUM, PARAMETERS, Guest
from virtksm.paths import RuntimePaths
from virtksm.policy import make_policy
from virtksm.store.state import StateFile, dump_host_state, parse_host_state
from virtksm.tuning.cycle import Cycle, Tenure

Result = TypeVar("Result")
Failure = TypeVar("Failure", bound=Exception)

ENDLESS = "9" * 5000
POLICIES = all_keys()["policy"].choices
"""More digits than Python turns into a number."""
names = st.sampled_from(["MemTotal", "MemFree", "MemAvailable", "Buffers", "Cached", "cow_ksm", "", "\u0661"])
figures = st.one_of(st.integers().map(str), st.sampled_from(["", " ", "x", "1_0", "\u0661\u0662", "\u00b2", ENDLESS]))
meminfos = st.lists(st.tuples(names, figures).map(lambda pair: f"{pair[0]}: {pair[1]} kB")).map("\n".join)
texts = st.one_of(st.text(), meminfos, figures, figures.map(lambda figure: f"{figure}\n"))


def outcome(call: Callable[[], Result], documented: type[Failure]) -> Result | Failure:
    """What a call gives back, or the one error that it may raise."""
    try:
        return call()
    except documented as error:
        return error


@given(text=texts)
@example(text="MemTotal: \nMemFree: 1 kB\n")
@example(text=f"MemTotal: {ENDLESS} kB\n")
@example(text="MemTotal: -1 kB\nMemFree: 1 kB\nBuffers: 1 kB\nCached: 1 kB\n")
def test_any_meminfo_is_memory_or_an_error(text: str) -> None:
    memory = outcome(lambda: parse_meminfo(text), ValueError)
    if isinstance(memory, ValueError):
        assert str(memory).endswith(" is missing")
        return
    kept = (memory.total_kib, memory.free_kib, memory.buffers_kib, memory.cached_kib, memory.available_kib)
    assert all(kib is None or kib >= 0 for kib in kept)


@given(text=texts)
@example(text=ENDLESS)
@example(text="\u00b2")
@example(text=f"cow_ksm {ENDLESS}")
def test_any_text_of_the_kernels_is_a_number_or_none(text: str) -> None:
    for number in (parse_counter(text), parse_vmstat(text, "cow_ksm")):
        assert number is None or 0 <= number < 10**20
    assert parse_choice(text) in text
    signed = parse_counter(text, is_signed=True)
    assert signed is None or abs(signed) < 10**20
    for stat in (text, f"ksm_rmap_items {text}\nksm_process_profit {text}\nksm_mergeable: {text}\n"):
        ksm = parse_process_ksm(stat, text)
        assert all(one is None or one >= 0 for one in (ksm.rmap_items, ksm.merging_pages, ksm.zero_pages))


@given(text=texts)
@example(text=ENDLESS)
def test_any_answer_of_systemds_is_control_groups_below_the_root(text: str) -> None:
    for answer in (text, f"MemoryKSM=yes\nControlGroup={text}", f"ControlGroup=/{text}\nMemoryKSM=yes\n"):
        assert all(group.startswith("/") and len(group) > 1 for group in parse_groups(answer))
    for groups in (text, f"0::{text}", f"1:name=systemd:{text}"):
        assert parse_group(groups) in groups
        assert parse_guest_group(groups) is None or "qemu" in groups
    assert is_named(text, text)


@given(content=st.binary() | texts.map(str.encode))
@example(content=ENDLESS.encode())
def test_any_statm_is_memory(content: bytes) -> None:
    for statm in (content, b"9 9 " + content, b"9 " + content + b" 1"):
        rss_kib, shared_kib = parse_memory_kib(statm, 4) or (1, 0)
        assert 0 < rss_kib < 4 * 10**20
        assert 0 <= shared_kib < 4 * 10**20


@given(content=st.binary() | texts.map(str.encode))
@example(content=b"\xff) " + b"9 " * 30)
def test_any_stat_and_status_are_a_process_or_none(content: bytes) -> None:
    for text in (content, b"1 (x) S " + content, b"Uid:\t" + content):
        stat, owner = parse_stat(text), parse_owner(text)
        assert stat is None or (stat.ticks >= 0 and stat.started >= 0)
        assert owner is None or owner >= 0


@given(content=st.binary(), begins=st.sampled_from([b"", b"-uuid\0", b"\0-uuid\0", b"qemu\0-uuid"]))
def test_any_command_line_is_a_guests_or_none(content: bytes, begins: bytes) -> None:
    uuid = parse_guest_uuid(begins + content)
    assert uuid is None or isinstance(uuid, str)


@given(content=st.binary() | texts.map(str.encode))
@example(content=b"\xff")
@example(content=ENDLESS.encode())
def test_any_bytes_in_the_kernels_files_are_facts_or_a_sensing_error(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(psutil, "PROCFS_PATH", folder)
        for name in ("meminfo", "vmstat", "run", "advisor_mode"):
            (Path(folder) / name).write_bytes(content)
        (Path(folder) / "7").mkdir()
        (Path(folder) / "7" / "cmdline").write_bytes(content)
        facts = ProcFacts(FakeClock(), sys_ksm=folder)
        memory = outcome(facts.host_memory, SensingFailed)
        if isinstance(memory, SensingFailed):
            assert memory.message.startswith(f"{folder}/meminfo: ")
            assert memory.remedy
        assert facts.vm_counters("cow_ksm", "thp_split_page") is not None
        assert facts.ksm_counter("run") is None or content.strip().isdigit()
        assert isinstance(facts.advisor_mode(), str)


def with_other_values(state: dict[str, object]) -> st.SearchStrategy[dict[str, object]]:
    """A state with some of its values replaced."""
    return st.dictionaries(st.sampled_from(sorted(state)), jsons).map(lambda changed: {**state, **changed})


jsons: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
settings = st.none() | st.booleans() | st.integers(-1, KERNEL_MAXIMUM + 1) | st.floats()
ownerships = st.fixed_dictionaries(dict.fromkeys(("baseline", "intended", "applied"), settings))


def cycle_in(paths: RuntimePaths, name: str, hypervisor: FakeHypervisor, clock: FakeClock) -> Cycle[Any]:
    return Cycle(
        hypervisor=hypervisor,
        local=FakeFacts(rss_kib={"u": 4096}),
        policy=make_policy(Config(policy=name)),  # type: ignore[arg-type]
        store=StateFile(paths, "local"),
        switch=FakeSwitch(),
        clock=clock,
        on_conflict="reassert",
        tenure=Tenure(),
    )


def pass_over(content: bytes, name: str) -> FakeHypervisor | StateUnusable:
    """Run two passes of a policy and a restore over a kept state; return the kernel, or why there was none."""
    hypervisor = FakeHypervisor(running=(Guest(uuid="u", name="g", domain_id=1),))
    with tempfile.TemporaryDirectory() as folder:
        paths, clock = RuntimePaths(f"{folder}/run"), FakeClock()
        with StateFile(paths, "local").locked():
            Path(paths.host_state("local")).write_bytes(content)
        cycle = cycle_in(paths, name, hypervisor, clock)

        def run() -> FakeHypervisor:
            for trigger in (Trigger.CONNECTED, Trigger.TIMER):
                cycle.run(Triggers(kinds=frozenset({trigger})))
                clock.now_s += 1
            if cycle.policy.only_observes:
                assert hypervisor.calls == []
            else:
                cycle.restore()
            return hypervisor

        done = outcome(run, StateUnusable)
        if isinstance(done, StateUnusable):
            assert done.message.startswith(f"{paths.host_state('local')}: ")
            assert done.remedy
            assert Path(paths.host_state("local")).read_bytes() == content, "damaged, it is kept as it is"
            assert hypervisor.calls == []
        return done


def check_pass_over(content: bytes, name: str) -> None:
    """Nothing but numbers that the kernel takes is written, and nothing at all over a state that is damaged."""
    kernel = pass_over(content, name)
    if isinstance(kernel, FakeHypervisor):
        assert all(0 <= value <= KERNEL_MAXIMUM for call in kernel.calls for value in call.values())


@given(content=st.binary(), name=st.sampled_from(POLICIES))
@example(content=b"[" * 100_000, name="adaptive")
@example(content=ENDLESS.encode(), name="adaptive")
@example(content=b"\xff", name="ksmtuned")
def test_any_bytes_for_a_state_are_refused_and_nothing_is_written(content: bytes, name: str) -> None:
    assert isinstance(pass_over(content, name), StateUnusable)


@given(
    ownership=st.dictionaries(st.sampled_from([*PARAMETERS, "run"]), ownerships | jsons, max_size=3),
    policy_name=st.sampled_from([*POLICIES, None, 3]),
    policy_state=jsons,
    name=st.sampled_from(POLICIES),
)
@example({"pages_to_scan": {"baseline": -1, "intended": None, "applied": 100}}, None, None, "adaptive")
@example({"sleep_millisecs": {"baseline": True, "intended": None, "applied": 20}}, None, None, "adaptive")
@example({"pages_to_scan": {"baseline": 2**40, "intended": None, "applied": 100}}, None, None, "ksmtuned")
def test_anything_like_a_state_is_a_state_or_refused(
    ownership: object, policy_name: object, policy_state: object, name: str
) -> None:
    state = {"schema": 1, "ownership": ownership, "policy_name": policy_name, "policy_state": policy_state}
    check_pass_over(json.dumps(state).encode(), name)


@given(data=st.data(), name=st.sampled_from(POLICIES))
def test_a_past_with_anything_in_its_values_begins_anew_or_is_taken(data: st.DataObject, name: str) -> None:
    kept = json.loads(dump_host_state(parse_host_state(first_state(name))))
    kept["policy_state"] = data.draw(with_other_values(kept["policy_state"]))
    check_pass_over(json.dumps(kept).encode(), name)


def first_state(name: str) -> str:
    """The state that two passes of a policy leave."""
    with tempfile.TemporaryDirectory() as folder:
        paths = RuntimePaths(f"{folder}/run")
        running = FakeHypervisor(running=(Guest(uuid="u", name="g", domain_id=1),))
        cycle = cycle_in(paths, name, running, FakeClock())
        cycle.run(Triggers(kinds=frozenset({Trigger.CONNECTED})))
        return Path(paths.host_state("local")).read_text(encoding="utf-8")
