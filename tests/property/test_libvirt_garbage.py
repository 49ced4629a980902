"""What a pass makes of any numbers, and of anything in their place, that libvirt may answer with."""

import json
from typing import Any, cast

import libvirt
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import FakeClock, FakeFacts, FakeStore, FakeSwitch
from tests.lab.fake_libvirt import FakeConnection, FakeDomain
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
    | dict.fromkeys(("buffers", "cached", "cpus", "balloon.rss", "balloon.maximum"), anything),
)
names = st.sampled_from(["web", "", "x" * 5000, "\ud800", "a\nb", "\x00", "\u202e"])
policies = st.sampled_from(
    [
        AdaptivePolicy(params=AdaptiveParams(engage="auto")),
        AdaptivePolicy(params=AdaptiveParams(engage="always", merge_across_nodes="never")),
        KsmtunedPolicy(params=KsmtunedParams()),
    ]
)


@given(policy=policies, sequence=st.lists(answers, min_size=1, max_size=4), called=names, is_local=st.booleans())
def test_whatever_libvirt_answers_a_pass_ends_in_a_record_or_an_error_of_ours(
    policy: Policy[Any], sequence: list[dict[str, Any]], called: str, *, is_local: bool
) -> None:
    store, tenure, clock = FakeStore(), Tenure(), FakeClock()
    for answered in sequence:
        domains = [FakeDomain("5d1a3c1e-0000-4000-8000-000000000001", called, answered.get("balloon.maximum"))]
        cycle = Cycle(
            hypervisor=LibvirtHost(cast(libvirt.virConnect, FakeConnection(domains, answered, takes=False))),
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
