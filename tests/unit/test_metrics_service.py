"""The agent's metrics as a service: the text file tells that the agent lives, and faults are told."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.fakes import FakeFacts
from tests.lab.hang import HANG_S
from tests.lab.ksm import wait_until
from tests.lab.ports import free_port
from tests.unit.test_metrics import moment
from tests.unit.test_metrics_server import ask, request
from virtksm.agent.metrics.counters import Tally
from virtksm.agent.metrics.service import Metrics, Page
from virtksm.agent.metrics.textfile import ALIVE_S, Textfile
from virtksm.agent.status import AgentFacts
from virtksm.config.schema import MetricsParams, all_keys
from virtksm.errors import VirtksmError


async def until(is_so: Callable[[], bool]) -> None:
    await asyncio.to_thread(wait_until, is_so, HANG_S, "the service")


async def test_a_file_is_written_anew_though_nothing_changes(tmp_path: Path) -> None:
    pages = iter(range(1000))
    file = tmp_path / "virtksm.prom"

    async def page() -> bytes:
        return b"%d\n" % next(pages)

    textfile = Textfile(str(file), 0.01, page, lambda error: None, alive_s=0.02)
    writing = asyncio.create_task(textfile.keep_writing())
    await until(lambda: file.exists() and int(file.read_text()) >= 3)
    textfile.end()
    await writing
    assert not file.exists()


async def test_what_nobody_thought_of_costs_one_writing(tmp_path: Path) -> None:
    faults: list[Exception] = [RuntimeError("can't start new thread")]
    told: list[Exception | None] = []
    file = tmp_path / "virtksm.prom"

    async def page() -> bytes:
        if faults:
            raise faults.pop()
        return b"0\n"

    textfile = Textfile(str(file), 0.01, page, told.append, alive_s=0.02)
    writing = asyncio.create_task(textfile.keep_writing())
    await until(lambda: file.exists() or writing.done())
    textfile.end()
    await writing
    assert [str(error) for error in told[:2]] == ["can't start new thread", "None"]


@dataclass
class Faulty:
    """An agent whose facts look like right ones, until they are written."""

    is_faulty: bool = True
    told: list[Exception | None] = field(default_factory=list)

    def agent(self) -> AgentFacts:
        known = moment(Tally(), None).agent
        object.__setattr__(known, "policy", object() if self.is_faulty else "adaptive")
        return known

    def metrics(self) -> Metrics:
        return Metrics(Page(Tally(), self.agent, FakeFacts()), self.told.append)


def test_no_configuration_has_the_file_written_less_often_than_every_minute() -> None:
    """By docs/metrics.md, and what judges its age."""
    assert all_keys()["metrics.textfile_s"].bounds[1] <= ALIVE_S <= 60


async def test_a_fault_in_making_them_is_told_and_the_file_is_kept_on(tmp_path: Path) -> None:
    file = tmp_path / "virtksm.prom"
    agent = Faulty()
    metrics = agent.metrics()
    metrics.follow(MetricsParams(textfile=str(file), textfile_s=1))
    await until(lambda: bool(agent.told))
    assert not file.exists()
    agent.is_faulty = False
    metrics.follow(MetricsParams(textfile=str(file), textfile_s=1))
    await until(file.exists)
    await metrics.close()
    first = agent.told[0]
    assert isinstance(first, VirtksmError)
    assert "metrics cannot be made: " in first.message
    assert agent.told[-1] is None
    assert not file.exists()


async def test_a_fault_in_making_them_is_told_to_who_asks() -> None:
    agent = Faulty()
    metrics = agent.metrics()
    port = free_port()
    metrics.follow(MetricsParams(listen=f"127.0.0.1:{port}"))
    answer = await ask(port, request(b"GET /metrics HTTP/1.1"))
    assert answer.startswith(b"HTTP/1.1 500 ")
    agent.is_faulty = False
    answer = await ask(port, request(b"GET /metrics HTTP/1.1"))
    text = answer.partition(b"\r\n\r\n")[2].decode()
    assert "virtksm_up" in {family.name for family in text_string_to_metric_families(text)}
    await metrics.close()
    assert [error is None for error in agent.told] == [False]
