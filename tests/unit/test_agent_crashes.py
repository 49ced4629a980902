"""An exception that nobody thought of, out of every method of every port: it costs one pass, request or step.

The methods are taken from the Protocols, so that a new one is held to it by itself. The agent is the real one, over
fakes of which one raises; requests come through a real socket.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.fakes import BUSY, FakeHistory
from tests.lab.agent_bench import URI, Bench
from tests.lab.hang import HANG_S
from tests.lab.samples import guest
from virtksm.agent.control_client import ask
from virtksm.agent.sockets import ControlServer, bind_socket
from virtksm.config.schema import Config
from virtksm.errors import ExitCode
from virtksm.guests.ports import Descriptions
from virtksm.history.samples import History
from virtksm.host.libvirt_events import DomainEvent
from virtksm.model.decision import Trigger
from virtksm.policy.base import Policy
from virtksm.tuning.ports import Clock, Hypervisor, LocalFacts, StateStore, Switch

CRASHES = ("pass_crashed", "request_failed", "task_crashed")
REQUESTS: tuple[dict[str, object], ...] = (
    {"op": "status"},
    {"op": "retune", "uri": URI},
    {"op": "retune", "uri": URI, "dry_run": True},
    {"op": "pause", "uri": URI},
    {"op": "resume", "uri": URI},
    {"op": "history"},
    {"op": "decisions"},
    {"op": "trace"},
    {"op": "reload"},
    {"op": "nonsense"},
)
PORTS: dict[type, str] = {
    Hypervisor: "hypervisor",
    Descriptions: "hypervisor",
    LocalFacts: "facts",
    StateStore: "store",
    Switch: "switch",
    Clock: "clock",
    History: "history",
    Policy: "policy",
}
"""Every port, and the bench's part that stands for it."""
OF_REMOTE_HOSTS = {(Hypervisor, "host_memory"), (Hypervisor, "measured_guests"), (Hypervisor, "cpus")}
BESIDE_PASSES = {
    (Switch, "turn_off"),
    (Switch, "turn_on"),
    (Descriptions, "guest_xml"),
    (Hypervisor, "forget_max"),
    *((History, name) for name in ("add", "samples", "events", "decisions")),
}
"""What no pass asks for."""
ERRORS: tuple[Callable[[], Exception], ...] = (
    lambda: RuntimeError("injected"),
    lambda: psutil.AccessDenied(pid=1, msg="injected"),
    lambda: StopIteration("injected"),
)


def members_of(protocol: type) -> list[str]:
    """Return what a Protocol asks for, but for plain data."""
    return [
        name
        for name, member in vars(protocol).items()
        if (callable(member) or isinstance(member, property)) and (name == "__call__" or not name.startswith("_"))
    ]


ELSEWHERE = {(StateStore, "is_own"), (Descriptions, "taints")}
"""What only a restore and `virtksm guest` ask for."""
MEMBERS = [(port, name) for port in PORTS for name in members_of(port) if (port, name) not in ELSEWHERE]
CASES = [(port, name, make) for (port, name), make in zip(MEMBERS, cycle(ERRORS), strict=False)]
"""Each kind of error comes out of a third of them: what is made of it is the same for all."""


@dataclass
class Faulty:
    """A port of which one member raises while it is armed; all else is the fake's."""

    port: Any
    member: str
    make: Callable[[], Exception]
    is_armed: bool = False
    raised: int = 0

    def __call__(self) -> Any:  # noqa: ANN401  # the fake's
        return self.__getattr__("__call__")()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # the fake's
        value = getattr(self.port, name)
        if name != self.member:
            return value
        if not callable(value):
            self._raise()
            return value

        def call(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401  # the fake's
            self._raise()
            return value(*arguments, **named)

        return call

    def _raise(self) -> None:
        if self.is_armed:
            self.raised += 1
            raise self.make()


@pytest.fixture
def bench() -> Bench:
    bench = Bench(config=Config(coalesce_ms=0, private_guests=("*",)), history=FakeHistory())
    bench.policy.wants_maxima = bench.policy.wants_other_processes = True
    bench.hypervisor.running = (guest("one"), guest("two"))
    xml = "<domain><numatune><memory mode='strict' nodeset='0'/></numatune></domain>"
    bench.hypervisor.xml = {one.uuid: xml for one in bench.hypervisor.running}
    return bench


async def ask_all(bench: Bench, path: str) -> None:
    """Make every request, each of which has to be answered."""
    server = ControlServer(bind_socket(path), bench.requests.handle, crashed=bench.agent.reporter.request_failed)
    for request in REQUESTS:
        answer = await asyncio.to_thread(ask, path, request, timeout_s=HANG_S)
        assert answer is not None
        assert answer["ok"] is True or "error" in answer, (request, answer)
    server.clients.close()


@pytest.mark.parametrize(("port", "member", "make"), CASES, ids=lambda one: getattr(one, "__name__", one))
async def test_an_exception_of_any_port_costs_a_pass_or_a_request_and_ends_nothing(
    bench: Bench, tmp_path: Path, port: type, member: str, make: Callable[[], Exception]
) -> None:
    if (port, member) in OF_REMOTE_HOSTS:
        bench.facts = None
    part = PORTS[port]
    faulty = Faulty(getattr(bench, part), member, make)
    setattr(bench, part, faulty)
    async with bench.running():
        agent = bench.agent
        await bench.looked()
        faulty.is_armed = True
        agent.tenure.decided = None  # as after another process's pass
        event = DomainEvent(trigger=Trigger.MEMORY_DEVICE, guest="one", uuid="u", detail="dimm0", heard_s=0.0)
        for _ in range(2):
            bench.passes.heard(event)
            await ask_all(bench, str(tmp_path / "sock"))
        await bench.lose()
        await bench.until(lambda: agent.reporter.tally.connections > 1 or bench.events("task_crashed") != [])
        assert faulty.raised > 0, "nothing here asks for it: widen the story"
        faulty.is_armed = False
        await bench.until(lambda: agent.passes.cycle is not None)
        passes = len(bench.events("pass_completed"))
        answer = await bench.ask("resume")
        assert answer["ok"] is True, answer
        assert len(bench.events("pass_completed")) > passes, "the next pass goes on"
        assert bench.hypervisor.values["pages_to_scan"] == BUSY.pages_to_scan
    crashes = [event for event in bench.said if event["event"] in CRASHES]
    assert crashes, "it is logged"
    for crash in crashes:
        assert "injected" in crash["traceback"]
        assert "Traceback" in crash["traceback"]
        assert "in _raise" in crash["traceback"]
    loud = [(event["event"], event["error"]) for event in crashes if event["level"] == "error"]
    assert sorted(set(loud)) == sorted(loud) == sorted({(one["event"], one["error"]) for one in crashes}), "each once"
    if (port, member) not in BESIDE_PASSES:
        assert bench.events("pass_crashed"), "it cost a pass"
        assert bench.agent.reporter.tally.passes.by_result["failed"] > 0
    assert bench.agent.reporter.tally.crashes.total() == len(crashes), "and all are counted"
    assert bench.code is ExitCode.DONE
    assert bench.hypervisor.values["pages_to_scan"] == 100, "on_exit has happened"


@pytest.mark.parametrize(
    ("part", "member"), [("hypervisor", "ksm_state"), ("hypervisor", "set_parameters"), ("store", "is_own")]
)
async def test_an_exception_at_the_end_is_told_and_the_agent_ends(bench: Bench, part: str, member: str) -> None:
    faulty: Any = Faulty(getattr(bench, part), member, lambda: RuntimeError("injected"))
    setattr(bench, part, faulty)
    async with bench.running():
        faulty.is_armed = True
    assert [event["task"] for event in bench.events("task_crashed")] == ["leaving"]
    assert bench.code is ExitCode.FAILED


async def test_a_dry_run_that_fails_moves_no_pass_and_is_no_failed_pass(bench: Bench) -> None:
    bench.policy.next_pass_s = 1_000_000.0
    async with bench.running():
        due_s = bench.passes.coalescer.timer_s
        for error in (RuntimeError("a bug"), None):
            bench.hypervisor.reading_fails = error or psutil.AccessDenied(pid=1)
            with pytest.raises((RuntimeError, psutil.AccessDenied)):  # which the socket reports, and answers
                await bench.request({"op": "retune", "uri": URI, "dry_run": True})
        bench.hypervisor.reading_fails = None
        assert bench.passes.coalescer.timer_s == due_s
    assert bench.events("pass_crashed") == []
    assert bench.agent.reporter.tally.passes.by_result["failed"] == 0
