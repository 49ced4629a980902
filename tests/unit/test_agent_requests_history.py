"""The agent over fakes: its history is written, and answers requests that mean its host."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from tests.fakes import FakeFacts, FakeHistory
from tests.lab.agent_bench import URI, Bench, guest
from virtksm.config.schema import Config
from virtksm.host.libvirt_events import DomainEvent
from virtksm.model.decision import Trigger


@pytest.fixture
def bench() -> Iterator[Bench]:
    yield Bench()
    structlog.reset_defaults()


def test_passes_and_events_are_told_and_written_at_the_agents_end(bench: Bench) -> None:
    history = FakeHistory()
    bench.hypervisor.running = (guest("vm"),)

    async def story() -> None:
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

    bench.run(story)
    assert [one.domain for one in history.kept_events] == ["vm"]
    assert history.kept_samples[-1].guests == 1


@pytest.mark.parametrize("op", ["status", "history", "decisions"])
def test_who_means_another_host_is_told_which_one_this_is(bench: Bench, op: str) -> None:
    async def story() -> None:
        assert (await bench.request({"op": op}))["ok"] is True
        assert (await bench.ask(op))["ok"] is True
        assert await bench.request({"op": op, "uri": "other:///"}) == {"ok": False, "other_uri": URI}

    bench.run(story)


def test_the_status_tells_this_machines_kernel_unless_the_host_is_another(bench: Bench) -> None:
    async def story() -> None:
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

    bench.run(story)
