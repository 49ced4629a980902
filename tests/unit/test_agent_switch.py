"""The agent over fakes: off, on and what it gives a recorder, through its control requests; the look at guests' XML."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
import structlog

from tests.fakes import FakeHypervisor
from tests.lab.agent_bench import BUSY, URI, Bench, guest
from virtksm.agent.configuration import FreshConfig
from virtksm.config.schema import Config
from virtksm.errors import ConfigError, ConfigFault, ExitCode, LibvirtUnreachable
from virtksm.guests.xml import NAMESPACE
from virtksm.model.decision import Trigger

PLAIN = "<domain/>"
KEPT_OUT = "<domain><memoryBacking><nosharepages/></memoryBacking></domain>"
PRIVATE = f'<domain><metadata><v:guest xmlns:v="{NAMESPACE}" private="yes"/></metadata></domain>'


@pytest.fixture
def bench() -> Iterator[Bench]:
    yield Bench()
    structlog.reset_defaults()


@pytest.mark.parametrize(("is_ours", "code"), [(True, ExitCode.DONE), (False, ExitCode.REFUSED)])
def test_a_merge_across_nodes_that_has_to_wait_fails_no_end_and_another_refusal_does(
    bench: Bench, *, is_ours: bool, code: ExitCode
) -> None:
    bench.policy.target = replace(BUSY, merge_across_nodes=0)

    async def story() -> None:
        bench.hypervisor.pages_shared = 9
        bench.hypervisor.advisor_on = not is_ours

    bench.run(story)
    assert bench.code is code
    levels = {event["parameter"]: event["level"] for event in bench.events("restore_refused")}
    assert levels == {"merge_across_nodes": "warning"} | ({} if is_ours else {"pages_to_scan": "error"})
    assert bench.store.state.ownership["merge_across_nodes"].baseline == 1, "it is given back later"


def test_a_recorder_gets_every_pass_but_dry_runs_and_those_while_off_too(bench: Bench) -> None:
    async def story() -> None:
        first = (await bench.ask("trace"))["trace"]
        assert json.loads(first["header"])["uri"] == URI
        request = {"op": "trace", "session": first["session"], "since": first["next"]}
        await bench.request({"op": "retune", "uri": URI, "dry_run": True})
        await bench.pass_for(Trigger.STARTED)
        await bench.ask("off")
        lines = [json.loads(line) for line in (await bench.request(request))["trace"]["lines"]]
        assert [line["triggers"] for line in lines] == [["started"], ["off"]]
        assert [line["decision"]["rule"] for line in lines] == ["told", "switched_off"]
        assert [line["off"] is not None for line in lines] == [False, True]
        assert lines[1]["state"] is None

    bench.run(story)


def test_a_reload_that_is_asked_for_is_answered_by_what_is_in_force_or_by_the_faults(bench: Bench) -> None:
    fault = ConfigFault(file="/etc/x.toml", key="policy", problem="is 3, not a text", remedy="use one of the choices")

    def refuse() -> FreshConfig:
        raise ConfigError([fault])

    async def story() -> None:
        bench.config = Config(coalesce_ms=0, policy="ksmtuned")
        assert await bench.ask("reload") == {"ok": True, "policy": "ksmtuned"}
        bench.agent.configuration.read = refuse
        assert await bench.ask("reload") == {"ok": False, "error": str(fault), "remedy": "", "exit_code": 2}
        assert bench.agent.configuration.in_force.policy == "ksmtuned"
        await bench.until(
            lambda: "reload" in [name for one in bench.events("pass_completed") for name in one["triggers"]]
        )

    bench.run(story)
    assert (len(bench.events("config_reloaded")), len(bench.events("config_rejected"))) == (1, 1)


def test_off_is_kept_although_its_pass_fails_and_an_agent_that_ends_then_leaves_ksm_parked(bench: Bench) -> None:
    async def story() -> None:
        bench.hypervisor.reading_fails = LibvirtUnreachable("gone")
        answer = await bench.ask("off")
        assert (answer["ok"], answer["exit_code"]) == (False, 3)
        assert answer["error"].startswith("paused, but no pass was possible yet: gone")
        bench.hypervisor.reading_fails = None
        await bench.pass_for(Trigger.STARTED)
        assert bench.hypervisor.values["pages_to_scan"] == 0

    bench.run(story)
    assert bench.hypervisor.values["pages_to_scan"] == 0
    assert len(bench.events("ksmd_idled")) == 1
    assert bench.events("settings_restored") == []


def test_private_guests_are_named_once_and_again_when_they_come_back(bench: Bench) -> None:
    bench.config = replace(bench.config, private_guests=("tenant-*",))
    open_one, apart, other = guest("tenant-open"), guest("tenant-apart"), guest("other")
    bench.hypervisor.xml = {open_one.uuid: PLAIN, apart.uuid: KEPT_OUT, other.uuid: PLAIN}

    async def story() -> None:
        bench.hypervisor.running = (open_one, apart, other)
        await bench.pass_for(Trigger.STARTED)
        await bench.looked()
        assert (await bench.pass_for(Trigger.STARTED))["exposed"] == ["tenant-open"]
        bench.hypervisor.running = (apart, other)
        assert (await bench.pass_for(Trigger.STOPPED))["exposed"] == []
        bench.hypervisor.running = (open_one, apart, other)
        await bench.pass_for(Trigger.STARTED)
        await bench.looked()

    bench.run(story)
    assert [event["guest"] for event in bench.events("private_guest_exposed")] == ["tenant-open"] * 2


def test_a_look_that_fails_is_told_once_and_tried_again_after_the_next_pass(bench: Bench) -> None:
    fails = [LibvirtUnreachable("hangs"), LibvirtUnreachable("hangs")]

    class Hanging(FakeHypervisor):
        def guest_xml(self, uuid: str) -> str:
            if fails:
                raise fails.pop()
            return PRIVATE

    bench.hypervisor = Hanging(running=(guest("one"),))

    async def story() -> None:
        while not bench.events("private_guest_exposed"):
            await bench.pass_for(Trigger.STARTED)

    bench.run(story)
    assert [event["level"] for event in bench.events("guest_xml_unreadable")] == ["warning", "debug"]
