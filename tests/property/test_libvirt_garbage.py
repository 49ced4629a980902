"""What a pass makes of any numbers, and of anything in their place, that libvirt may answer with."""

# ruff: noqa: N802  # the names of libvirt-python
from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, cast

import libvirt
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import FakeClock, FakeFacts, FakeStore, FakeSwitch
from virtksm.config.schema import AdaptiveParams, KsmtunedParams
from virtksm.errors import VirtksmError
from virtksm.host.libvirt_connection import LibvirtHost
from virtksm.model.decision import Trigger, Triggers
from virtksm.model.snapshot import PARAMETERS
from virtksm.policy.adaptive import AdaptivePolicy
from virtksm.policy.base import Policy
from virtksm.policy.ksmtuned import KsmtunedPolicy
from virtksm.store.state import dump_host_state, parse_host_state
from virtksm.tuning.cycle import Cycle, Tenure

COUNTERS = ("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile", "full_scans")
anything = st.sampled_from([0, 1, -1, 100, 2**31, 2**32 - 1, 2**32, 2**64, 10**30, True, None, "x", 1.5, b"x"])
answers = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys((*(f"shm_{name}" for name in (*PARAMETERS, *COUNTERS)), "total", "free"), anything)
    | dict.fromkeys(("buffers", "cached", "balloon.rss", "balloon.maximum"), anything),
)
names = st.sampled_from(["web", "", "x" * 5000, "\ud800", "a\nb", "\x00", "\u202e"])
policies = st.sampled_from(
    [
        AdaptivePolicy(params=AdaptiveParams(engage="auto")),
        AdaptivePolicy(params=AdaptiveParams(engage="always", merge_across_nodes="never")),
        KsmtunedPolicy(params=KsmtunedParams()),
    ]
)


@dataclass
class Domain:
    """A guest of whom libvirt says anything."""

    answered: dict[str, Any]
    called: str

    def name(self) -> str:
        return self.called

    def UUIDString(self) -> str:
        return "5d1a3c1e-0000-4000-8000-000000000001"

    def ID(self) -> int:
        return 1

    def maxMemory(self) -> object:
        return self.answered.get("balloon.maximum")


@dataclass
class Connection:
    """A connection that answers everything with the same dictionary."""

    answered: dict[str, Any]
    called: str

    def getURI(self) -> str:
        return "qemu:///system"

    def isAlive(self) -> int:
        return 1

    def getMemoryParameters(self) -> dict[str, Any]:
        return self.answered

    def getMemoryStats(self, _cells: int) -> dict[str, Any]:
        return self.answered

    def listAllDomains(self, _flags: int) -> list[Domain]:
        return [Domain(self.answered, self.called)]

    def getAllDomainStats(self, _stats: int, _flags: int) -> list[tuple[Domain, dict[str, Any]]]:
        return [(Domain(self.answered, self.called), self.answered)]

    def setMemoryParameters(self, _values: dict[str, int]) -> int:
        return 0


@given(policy=policies, sequence=st.lists(answers, min_size=1, max_size=4), called=names, is_local=st.booleans())
def test_whatever_libvirt_answers_a_pass_ends_in_a_record_or_an_error_of_ours(
    policy: Policy[Any], sequence: list[dict[str, Any]], called: str, *, is_local: bool
) -> None:
    store, tenure, clock = FakeStore(), Tenure(), FakeClock()
    for answered in sequence:
        cycle = Cycle(
            hypervisor=LibvirtHost(cast(libvirt.virConnect, Connection(answered, called))),
            local=FakeFacts() if is_local else None,
            policy=policy,
            store=store,
            switch=FakeSwitch(),
            clock=clock,
            on_conflict="reassert",
            tenure=tenure,
        )
        clock.now_s += 1
        try:
            json.dumps(cycle.run(Triggers(kinds=frozenset({Trigger.TIMER}))).as_dict())
            cycle.restore()
        except VirtksmError:
            continue
    for state in store.saved:
        assert parse_host_state(dump_host_state(state)).ownership == state.ownership, (
            "else the baseline is lost with the process"
        )
