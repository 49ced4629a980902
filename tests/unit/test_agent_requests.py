"""The agent over fakes: requests for off, on, reload, a recorder's lines, history and status; private guests."""

import json
from typing import Any

import pytest

from tests.fakes import BUSY, FakeChoices, FakeFacts, FakeHistory
from tests.lab.agent_bench import URI, Bench
from tests.lab.samples import guest
from virtksm.agent.configuration import FreshConfig
from virtksm.agent.guest_switches import ThisHost
from virtksm.config.schema import Config
from virtksm.errors import ConfigError, ConfigFault, ExitCode, LibvirtUnreachable
from virtksm.guests.choices import COMMAND, Choice
from virtksm.host.libvirt_events import DomainEvent
from virtksm.model.decision import Trigger
from virtksm.model.snapshot import Guest
from virtksm.values import replace

KEPT_OUT = "<domain><memoryBacking><nosharepages/></memoryBacking></domain>"


def sensed(bench: Bench) -> tuple[Guest, ...]:
    """Return the guests as the last pass knows them."""
    assert bench.passes.last is not None
    return bench.passes.last.report.snapshot.guests


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize(("is_ours", "code"), [(True, ExitCode.DONE), (False, ExitCode.REFUSED)])
async def test_a_merge_across_nodes_that_has_to_wait_fails_no_end_and_another_refusal_does(
    bench: Bench, *, is_ours: bool, code: ExitCode
) -> None:
    bench.policy.target = replace(BUSY, merge_across_nodes=0)
    async with bench.running():
        bench.hypervisor.pages_shared = 9
        bench.hypervisor.advisor_on = not is_ours
    assert bench.code is code
    levels = {event["parameter"]: event["level"] for event in bench.events("restore_refused")}
    assert levels == {"merge_across_nodes": "warning"} | ({} if is_ours else {"pages_to_scan": "error"})
    assert bench.store.state.ownership["merge_across_nodes"].baseline == 1, "it is given back later"


async def test_a_recorder_gets_every_pass_but_dry_runs_and_those_while_off_too(bench: Bench) -> None:
    async with bench.running():
        first = (await bench.ask("trace"))["trace"]
        assert json.loads(first["header"])["uri"] == URI
        request = {"op": "trace", "session": first["session"], "since": first["next"]}
        await bench.request({"op": "retune", "uri": URI, "dry_run": True})
        await bench.pass_for(Trigger.STARTED)
        await bench.ask("pause")
        lines = [json.loads(line) for line in (await bench.request(request))["trace"]["lines"]]
        assert [line["triggers"] for line in lines] == [["started"], ["pause"]]
        assert [line["decision"]["rule"] for line in lines] == ["told", "paused"]
        assert [line["paused"] is not None for line in lines] == [False, True]
        assert lines[1]["state"] is None


async def test_a_reload_that_is_asked_for_is_answered_by_what_is_in_force_or_by_the_faults(bench: Bench) -> None:
    fault = ConfigFault(file="/etc/x.toml", key="policy", problem="is 3, not a text", remedy="use one of the choices")

    def refuse() -> FreshConfig:
        raise ConfigError([fault])

    async with bench.running():
        bench.config = Config(coalesce_ms=0, policy="ksmtuned")
        assert await bench.ask("reload") == {"ok": True, "policy": "ksmtuned"}
        bench.agent.configuration.read = refuse
        assert await bench.ask("reload") == {"ok": False, "error": str(fault), "exit_code": 2}
        assert bench.agent.configuration.in_force.policy == "ksmtuned"
        await bench.until(
            lambda: "reload" in [name for one in bench.events("pass_completed") for name in one["triggers"]]
        )
    assert (len(bench.events("config_reloaded")), len(bench.events("config_rejected"))) == (1, 1)


async def test_off_is_kept_although_its_pass_fails_and_an_agent_that_ends_then_leaves_ksm_parked(bench: Bench) -> None:
    async with bench.running():
        bench.hypervisor.reading_fails = LibvirtUnreachable("gone")
        answer = await bench.ask("pause")
        assert (answer["ok"], answer["exit_code"]) == (False, 3)
        assert answer["error"].startswith("paused, but no pass was possible yet: gone")
        bench.hypervisor.reading_fails = None
        await bench.pass_for(Trigger.STARTED)
        assert bench.hypervisor.values["pages_to_scan"] == 0
    assert bench.hypervisor.values["pages_to_scan"] == 0
    assert len(bench.events("ksmd_idled")) == 1
    assert bench.events("settings_restored") == []


async def test_from_the_next_pass_on_it_is_known_which_guests_cannot_merge_and_their_image_also_of_another_machine(
    bench: Bench,
) -> None:
    plain, apart = guest("plain"), guest("apart")
    cloned = "<domain><os><kernel>/boot/vmlinuz</kernel></os></domain>"
    bench.hypervisor.xml = {plain.uuid: cloned, apart.uuid: KEPT_OUT}
    bench.hypervisor.running = bench.hypervisor.measured = (plain, apart)
    async with bench.running():
        for facts in (bench.facts, None):
            bench.facts = facts
            await bench.lose()
            await bench.until(lambda: bench.passes.cycle is not None)
            await bench.looked()
            await bench.pass_for(Trigger.STARTED)
            assert [(one.can_merge, one.image is None) for one in sensed(bench)] == [(True, False), (False, True)]


async def test_a_guest_that_a_command_takes_out_or_lets_in_has_a_pass_that_knows_of_it(bench: Bench) -> None:
    one, choices = guest("one"), FakeChoices()
    bench.hypervisor.running, bench.hypervisor.xml = (one,), {one.uuid: "<domain/>"}
    out = Choice(name="one", process=f"process of {one.key}", merge=False, why=COMMAND, at_s=1.0, is_done=True)

    async def choose(*, merge: bool) -> None:
        choices.note(one.uuid, replace(out, merge=merge))
        bench.agent.listeners.switches.connect(ThisHost(choices, FakeFacts))
        await bench.until(lambda: [seen.can_merge for seen in sensed(bench)] == [merge])
        assert bench.events("pass_completed")[-1]["triggers"] == ["guests"]

    async with bench.running():
        await bench.looked()
        await choose(merge=False)
        await choose(merge=True)


async def test_passes_and_events_are_told_and_written_at_the_agents_end(bench: Bench) -> None:
    history = FakeHistory()
    bench.hypervisor.running = (guest("vm"),)
    async with bench.running():
        bench.agent.make_history = lambda _uri, _config: history
        event = DomainEvent(trigger=Trigger.STARTED, guest="vm", uuid="u", detail="booted", heard_s=0.0)
        bench.passes.heard(event)
        await bench.until(lambda: len(bench.events("pass_completed")) > 1)
        dry = await bench.request({"op": "retune", "uri": URI, "dry_run": True})
        assert dry["ok"]
        answer: Any = await bench.request({"op": "history", "seconds": 60, "points": 5})
        assert [row[2] for row in answer["history"]["events"]["rows"]] == ["vm"]
        assert len(answer["history"]["samples"]["rows"]) == 1
        decisions: Any = await bench.request({"op": "decisions", "last": 5, "uri": URI})
        triggers = [json.loads(line)["triggers"] for line in decisions["decisions"]]
        assert triggers == [["connected"], ["started"]], "a dry run is none"
        await bench.agent.reload()
        await bench.until(lambda: history.kept_decisions != [])
    assert [one.domain for one in history.kept_events] == ["vm"]
    assert history.kept_samples[-1].guests == 1


@pytest.mark.parametrize("op", ["status", "history", "decisions"])
async def test_who_means_another_host_is_told_which_one_this_is(bench: Bench, op: str) -> None:
    async with bench.running():
        assert (await bench.request({"op": op}))["ok"] is True
        assert (await bench.ask(op))["ok"] is True
        assert await bench.request({"op": op, "uri": "other:///"}) == {"ok": False, "other_uri": URI}


async def test_the_status_tells_this_machines_kernel_unless_the_host_is_another(bench: Bench) -> None:
    async with bench.running():
        bench.requests.facts = FakeFacts(run=2)
        status: Any = (await bench.ask("status"))["status"]
        assert (status["now"]["origin"], status["now"]["ksm_run"]) == ("local", 2)
        for uri in ("qemu+ssh://far/system", "alias"):
            bench.hypervisor.uri = uri
            status = (await bench.request({"op": "status"}))["status"]
            assert status["now"]["origin"] == "last_pass"
        bench.agent.configuration.in_force = Config(host="local")
        bench.hypervisor.uri = "qemu+unix:///system"
        status = (await bench.request({"op": "status"}))["status"]
        assert status["now"]["origin"] == "local"
