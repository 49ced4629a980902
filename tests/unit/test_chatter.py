"""One guest sends thousands of balloon events over hours: what is logged and kept stays bounded, and others' stays."""

import asyncio
import io
from collections import Counter
from collections.abc import MutableMapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import FakeClock, FakeFacts, FakeHypervisor, fake_cycle
from tests.lab.agent_bench import listeners_of
from tests.lab.hang import HANG_S
from tests.lab.samples import event
from tests.unit.test_agent_history import WALL_S, until
from virtksm.agent.history import HistoryWriter
from virtksm.agent.listeners import MAX_AT_ONCE, REFILL_S, News
from virtksm.agent.log import Reporter
from virtksm.agent.passes import DonePass
from virtksm.config.schema import AdaptiveParams, Config, KsmtunedParams
from virtksm.history.samples import MAX_OF_A_KIND
from virtksm.host.libvirt_events import DomainEvent
from virtksm.host.systemd import Notifier
from virtksm.log_setup import configure
from virtksm.model.decision import Trigger, Triggers
from virtksm.model.report import PassReport
from virtksm.model.snapshot import Guest
from virtksm.policy.adaptive import AdaptivePolicy
from virtksm.policy.base import Policy
from virtksm.policy.ksmtuned import KsmtunedPolicy
from virtksm.store.history import HistoryFile
from virtksm.tuning.sense import GuestNotes
from virtksm.values import replace

CONFIG = Config()
EVERY_S = 2.7
MIB = 1024
GIB = 1024 * MIB
POLICIES: dict[str, Policy[Any]] = {
    "adaptive": AdaptivePolicy(params=AdaptiveParams(engage="always")),
    "ksmtuned, parked": KsmtunedPolicy(params=KsmtunedParams()),
    "ksmtuned, scanning": KsmtunedPolicy(params=KsmtunedParams(thres_coef=100)),
}


@pytest.fixture
def said() -> list[str]:
    """Have the log at level info taken down: the names of its events, and their guests."""
    lines: list[str] = []

    def take(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
        lines.append(f"{event['event']} {event.get('guest', '')}".strip())
        return ""

    configure("info", "json", stream=io.StringIO(), renderers=[take])
    return lines


class Host:
    """A host with one guest that inflates and deflates its balloon by 256 MiB, and others that start and stop."""

    def __init__(self, policy: Policy[Any]) -> None:
        self.clock = FakeClock()
        self.hypervisor = FakeHypervisor(running=(Guest(uuid="loud", name="loud"), Guest(uuid="other", name="other")))
        self.rss_kib = {"loud": GIB, "other": GIB}
        facts = FakeFacts(rss_kib=self.rss_kib)
        self.cycle = fake_cycle(hypervisor=self.hypervisor, local=facts, policy=policy, clock=self.clock)

    def run(self, *triggers: Trigger) -> PassReport:
        return self.cycle.run(Triggers(kinds=frozenset(triggers)))


@pytest.mark.parametrize(
    ("policy", "events"), [("adaptive", 3_000), ("ksmtuned, parked", 1_200), ("ksmtuned, scanning", 1_200)]
)
async def test_thousands_of_balloon_events_of_one_guest_stay_within_bounds(
    policy: str, events: int, said: list[str], tmp_path: Path
) -> None:
    host, reporter = Host(POLICIES[policy]), Reporter(Notifier({}))
    writes: list[str | None] = []
    history_writer = HistoryWriter(writes.append, wall_clock=lambda: WALL_S + host.clock.now_s, write_s=3600.0)
    history = HistoryFile(str(tmp_path / "lib" / "local.history"))
    listeners = listeners_of(CONFIG, reporter, history_writer, GuestNotes())

    def hear(heard: DomainEvent, *more: Trigger) -> None:
        """Do what the agent does with an event."""
        listeners.heard(heard)
        report, now_s = host.run(heard.trigger, *more), host.clock.now_s
        listeners.passed(DonePass(report=report, config=CONFIG, heard_s=now_s, ended_s=now_s))

    async def written() -> None:
        """Wait for a write, as it comes once a minute."""
        before = len(writes)
        history_writer.write_to(history)
        await until(lambda: len(writes) > before)

    writing = asyncio.create_task(history_writer.keep_writing())
    hear(event(Trigger.STARTED, "other", "booted"))
    hear(event(Trigger.STARTED, "loud", "booted"))
    written_s = host.clock.now_s
    for number in range(events):
        host.clock.now_s += EVERY_S
        host.rss_kib["loud"] = GIB + 256 * MIB * (number % 2)
        hear(event(Trigger.BALLOON, "loud", f"balloon {number} KiB"), *[Trigger.TIMER] * (number % 3 == 0))
        if host.clock.now_s - written_s >= 60:
            written_s = host.clock.now_s
            await asyncio.wait_for(written(), HANG_S)
    hear(event(Trigger.STOPPED, "other", "shut down"))
    history_writer.end()
    await asyncio.wait_for(writing, HANG_S)
    most_news = MAX_AT_ONCE + events * EVERY_S / REFILL_S + 3
    lines = Counter(said)
    assert lines.pop("pass_completed") <= most_news
    assert lines == {"event_received other": 2, "event_received loud": 1}
    assert len(history.decisions(events)) <= most_news
    befell = history.events(0)
    assert [(one.kind, one.domain) for one in befell if one.kind != "balloon"] == [
        ("started", "other"),
        ("started", "loud"),
        ("stopped", "other"),
    ]
    balloon = [one for one in befell if one.kind == "balloon"]
    assert len(balloon) == MAX_OF_A_KIND["balloon"][1]
    assert balloon[-1].detail == f"balloon {events - 1} KiB", "the last is kept"
    assert all(later.at_s - one.at_s >= 59 for one, later in pairwise(balloon[:-1])), "one a minute, and one at the end"


def test_what_somebody_asks_for_or_befalls_a_guest_is_news_however_much_was_told_before() -> None:
    host, news = Host(POLICIES["ksmtuned, scanning"]), News()
    for _ in range(10 * MAX_AT_ONCE):
        news.is_news(host.run(Trigger.TIMER), host.clock.now_s)
    assert not news.is_news(host.run(Trigger.TIMER), host.clock.now_s)
    for trigger in (Trigger.STARTED, Trigger.STOPPED, Trigger.RETUNE, Trigger.POKE):
        assert news.is_news(host.run(trigger, Trigger.BALLOON), host.clock.now_s)
    refused = replace(host.run(Trigger.TIMER), yields_now=True)
    assert news.is_news(refused, host.clock.now_s)
    assert not news.is_news(host.run(Trigger.TIMER), host.clock.now_s - 1000), "a clock that is behind brings nothing"
    assert news.is_news(host.run(Trigger.TIMER), host.clock.now_s + REFILL_S)
