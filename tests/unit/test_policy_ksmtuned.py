"""ksmtuned's law, rule by rule, on hosts whose numbers can be checked by hand."""

from typing import Literal, get_args, get_type_hints

import pytest

from virtksm.config.schema import Config, KsmtunedParams
from virtksm.model.decision import EVALUATING_ONLY, Trigger, Triggers
from virtksm.model.snapshot import IDLE, Guest, HostMemory, KsmState, Settings, Snapshot, Source
from virtksm.policy import make_policy
from virtksm.policy.ksmtuned import KsmtunedPolicy, KsmtunedState
from virtksm.values import replace

GIB_KIB = 1024 * 1024
STEP = Triggers(kinds=frozenset({Trigger.TIMER}))
POLICY = KsmtunedPolicy(params=KsmtunedParams())
FRESH = KsmtunedState(npages=0, stepped_at_s=None)
TOTAL_KIB = 16 * GIB_KIB
THRES_KIB = TOTAL_KIB // 5


def host(
    free_kib: int,
    committed_kib: int = 0,
    *,
    total_kib: int = TOTAL_KIB,
    source: Source = Source.LOCAL,
    pages_to_scan: int | None = 100,
) -> Snapshot:
    return Snapshot(
        taken_s=1000.0,
        source=source,
        host=HostMemory(total_kib=total_kib, free_kib=free_kib, buffers_kib=0, cached_kib=0),
        ksm=KsmState(settings=Settings(pages_to_scan=pages_to_scan, sleep_millisecs=20)),
        guests=(Guest(uuid="u", name="g", rss_kib=committed_kib),),
    )


def state(npages: int, stepped_at_s: float | None = None) -> KsmtunedState:
    return KsmtunedState(npages=npages, stepped_at_s=stepped_at_s)


# Rule 1


@pytest.mark.parametrize("total_kib", [0, 2**53 + 1])
def test_without_a_credible_total_it_lets_ksmd_idle_and_keeps_its_npages(total_kib: int) -> None:
    decision, after = POLICY.decide(host(0, total_kib=total_kib), state(400), STEP)
    assert decision.target == IDLE
    assert decision.reason.rule == "unknown"
    assert decision.reason.numbers["total_kib"] == total_kib
    assert decision.next_pass_s == 60
    assert after == state(400, 1000.0)


# Rule 2


def test_free_is_without_available_memory_and_committed_without_guests_that_could_not_be_read() -> None:
    memory = replace(host(0).host, free_kib=THRES_KIB - 2, buffers_kib=1, cached_kib=2, available_kib=0)
    guests = (Guest(uuid="a", name="a", rss_kib=None), Guest(uuid="b", name="b", rss_kib=5))
    decision, _ = POLICY.decide(replace(host(0), host=memory, guests=guests), FRESH, STEP)
    numbers = decision.reason.numbers
    assert (decision.reason.rule, numbers["free_kib"]) == ("stop", THRES_KIB + 1)
    assert (numbers["committed_kib"], numbers["guests"], numbers["guests_unread"]) == (5, 2, 1)


# Rule 4, where the script asks for more than the kernel takes; tests/property runs it beside rules 3 to 6


def test_sleep_is_what_the_kernel_takes() -> None:
    policy = KsmtunedPolicy(params=KsmtunedParams(sleep_msec=1_000_000))
    decision, _ = policy.decide(host(0, total_kib=1), FRESH, STEP)
    assert decision.target.sleep_millisecs == 2**32 - 1


# Rule 7


def test_a_balloon_or_device_re_evaluates_without_a_step() -> None:
    for npages, free_kib, rule, pages in ((0, 0, "hold", 64), (9999, 0, "hold", 1250), (500, TOTAL_KIB, "stop", 0)):
        before = state(npages, 990.0)
        decision, after = POLICY.decide(host(free_kib), before, Triggers(kinds=frozenset({Trigger.BALLOON})))
        assert (decision.reason.rule, decision.target.pages_to_scan) == (rule, pages)
        assert (after, decision.next_pass_s) == (before, 50)


def test_7_what_a_guest_does_by_itself_is_routine_while_nothing_changes_and_a_step_never_is() -> None:
    balloon = Triggers(kinds=frozenset({Trigger.BALLOON}))
    changing, _ = POLICY.decide(host(0, pages_to_scan=123), state(400), balloon)
    settled = host(0)
    settled = replace(settled, ksm=replace(settled.ksm, settings=changing.target))
    going_on, _ = POLICY.decide(settled, state(400), balloon)
    assert [changing.is_routine, going_on.is_routine] == [False, True]
    assert not POLICY.decide(settled, state(400), STEP)[0].is_routine


def test_every_other_trigger_is_one_step_also_in_a_burst() -> None:
    for trigger in set(Trigger) - EVALUATING_ONLY:
        for burst in ({trigger}, {trigger, Trigger.BALLOON, Trigger.STOPPED}):
            _, after = POLICY.decide(host(0), state(500, 990.0), Triggers(kinds=frozenset(burst)))
            assert after == state(800, 1000.0)


# Rule 8


@pytest.mark.parametrize(("stepped_at_s", "left_s"), [(None, 60), (3.0, 0), (9e15, 60)])
def test_without_a_step_the_rest_of_the_interval_is_left(stepped_at_s: float | None, left_s: float) -> None:
    balloon = Triggers(kinds=frozenset({Trigger.BALLOON}))
    decision, _ = POLICY.decide(host(0), state(0, stepped_at_s), balloon)
    assert decision.next_pass_s == left_s


# The beginning


def test_only_a_remote_host_begins_with_the_kernels_pages() -> None:
    remote = {pages: host(0, source=Source.LIBVIRT, pages_to_scan=pages) for pages in (700, None)}
    assert POLICY.first_state(host(0, pages_to_scan=700)) == POLICY.first_state(remote[None]) == state(0)
    assert POLICY.first_state(remote[700]) == state(700)


# The reason


def test_the_reason_holds_what_the_outcome_follows_from() -> None:
    decision, _ = POLICY.decide(host(THRES_KIB - 1, 77), state(500), STEP)
    numbers = decision.reason.numbers
    assert (numbers["thres_kib"], numbers["sleep_ms"]) == (THRES_KIB, 10)
    assert (numbers["committed_kib"], numbers["npages_before"], numbers["npages"]) == (77, 500, 800)
    assert decision.reason.text == (
        "3276.8 MiB free, threshold 3276.8 MiB; guests hold 0.1 MiB of 16384.0 MiB: "
        "boost from 500 to 800 pages every 10 ms"
    )


# The state as JSON


@pytest.mark.parametrize(
    "values",
    [
        {"npages": 5, "stepped_at_s": None, "more": 1},
        {"npages": -1, "stepped_at_s": None},
        {"npages": 5, "stepped_at_s": float("nan")},
    ],
)
def test_what_is_no_state_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"npages|stepped_at_s|KsmtunedState"):
        POLICY.load_state(values)


# The registry


def test_the_configuration_offers_the_policies_that_exist_each_by_its_name() -> None:
    names: tuple[Literal["ksmtuned"], ...] = get_args(get_type_hints(Config)["policy"])
    assert [make_policy(replace(Config(), policy=name)).name for name in names] == list(names)


def test_a_policy_gets_the_configurations_own_table() -> None:
    policy = make_policy(Config(policy="ksmtuned", ksmtuned=KsmtunedParams(npages_max=77)))
    decision, _ = policy.decide(host(0), policy.first_state(host(0)), STEP)
    assert decision.target.pages_to_scan == 77
