"""What an agent makes and tells, as values for tests to change: a pass, and all that it knows of itself."""

from datetime import UTC, datetime
from typing import Any

from tests.fakes import FakeFacts, FakeHypervisor, TargetPolicy, fake_cycle
from virtksm.agent.guest_switches import Trouble
from virtksm.agent.passes import DonePass
from virtksm.agent.status import AgentFacts
from virtksm.config.schema import Config
from virtksm.errors import VirtksmError
from virtksm.guests.choices import Choice
from virtksm.host.libvirt_events import DomainEvent
from virtksm.model.decision import Trigger, Triggers
from virtksm.model.report import PassReport
from virtksm.model.snapshot import Guest, Settings
from virtksm.values import replace

NOW = datetime(2026, 11, 25, 12, 0, 0, tzinfo=UTC)
SCANNING = Settings(pages_to_scan=285_714, sleep_millisecs=60_000)
UNMERGED = {"u": Choice(name="vault", process="1/1", merge=False, why="private", at_s=1.5, is_done=True)}
_SAFE = Guest(uuid="v", name="safe")
UNSWITCHED = (Trouble(_SAFE, merge=False, error=VirtksmError("no room", remedy="wait"), wait_s=5.0, due_s=6.0),)


def guest(name: str) -> Guest:
    return Guest(uuid=f"uuid of {name}", name=name, domain_id=1)


def event(trigger: Trigger, of: str, detail: str = "") -> DomainEvent:
    return DomainEvent(trigger=trigger, guest=of, uuid=of, detail=detail, heard_s=0.0)


def passed(target: Settings, *, run: int | None = 1) -> PassReport:
    """Return a pass that has set this."""
    cycle = fake_cycle(local=FakeFacts(run=run), policy=TargetPolicy(target=target))
    return cycle.run(Triggers(kinds=frozenset({Trigger.STARTED})))


def a_pass() -> PassReport:
    """Return a pass beside a guest that has merged."""
    hypervisor = FakeHypervisor(running=(Guest(uuid="u", name="vm"),))
    cycle = fake_cycle(hypervisor=hypervisor, local=FakeFacts(rss_kib={"u": 1000}))
    report = cycle.run(Triggers(kinds=frozenset({Trigger.TIMER})))
    ksm = replace(report.snapshot.ksm, pages_shared=5, pages_sharing=100, ksm_zero_pages=20)
    return replace(report, snapshot=replace(report.snapshot, ksm=ksm))


CALM = passed(SCANNING)


def agent_facts(
    last: PassReport | None = CALM,
    last_s: float = 990.0,
    **changes: Any,  # noqa: ANN401  # any field of AgentFacts
) -> AgentFacts:
    """Return what an agent knows while all is well, after this pass."""
    calm = AgentFacts(
        uri="qemu:///system",
        policy="adaptive",
        now_s=1000.0,
        lost_s=None,
        waiting=None,
        error=None,
        done=None if last is None else DonePass(report=last, config=Config(), heard_s=None, ended_s=last_s),
        next_s=1004.0,
        current=None,
        room_kib={"safe": 1, "unmerged": 2, "at_ratio": 3},
    )
    return replace(calm, **changes)
