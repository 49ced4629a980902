"""`virtksm trace record` of a real agent with real guests, and `virtksm trace replay` of what it has written."""

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.guests import PayloadGuest
from tests.lab.fixtures import GuestFactory
from tests.lab.hang import HANG_S
from tests.lab.ksm import wait_until
from tests.real.agent_process import UNSETTLED_LAW, AgentFactory, AgentHome

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("ksm")]


class Recording:
    """A running `virtksm trace record`."""

    def __init__(self, home: AgentHome, *options: str, name: str) -> None:
        self.file = home.folder / name
        self._process = subprocess.Popen(
            home.command("trace", "record", str(self.file), *options),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def lines(self) -> list[dict[str, Any]]:
        """Return the whole lines that are in the file."""
        if not self.file.exists():
            return []
        return [
            json.loads(line) for line in self.file.read_text(encoding="utf-8").splitlines(keepends=True) if "\n" in line
        ]

    def passes(self) -> list[dict[str, Any]]:
        return [line for line in self.lines() if line["kind"] == "pass"]

    def wait_for_passes(self, number: int) -> None:
        wait_until(
            lambda: len(self.passes()) >= number or self._process.poll() is not None,
            HANG_S,
            f"{number} recorded passes",
        )
        if self._process.poll() is not None:
            pytest.fail(f"the recording has ended: {self._process.communicate()}")

    def end(self, how: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
        """End it and return its exit code, its summary and its complaints."""
        self._process.send_signal(how)
        said, complained = self._process.communicate(timeout=HANG_S)
        return self._process.returncode, said, complained

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate(timeout=HANG_S)


@pytest.fixture
def record(agent_home: AgentHome) -> Iterator[Callable[..., Recording]]:
    """Lend what begins recordings, which end with the test."""
    begun: list[Recording] = []

    def begin(*options: str) -> Recording:
        begun.append(Recording(agent_home, *options, name=f"trace{len(begun)}.jsonl"))
        begun[-1].wait_for_passes(1)
        return begun[-1]

    try:
        yield begin
    finally:
        for one in begun:
            one.close()


def replayed(home: AgentHome, file: Path, *options: str) -> dict[str, Any]:
    bare = [
        one
        for one in home.command("trace", "replay", str(file), "--all", "--json", *options)
        if one != str(home.config)
    ]
    bare.remove("--config")
    done = subprocess.run(bare, check=False, capture_output=True, text=True, timeout=HANG_S)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert isinstance(told, dict)
    return told


def test_what_a_sweep_was_decided_by_is_recorded_and_decides_the_same_again_also_anonymous(
    start_agent: AgentFactory, guest: GuestFactory, record: Callable[..., Recording]
) -> None:
    agent = start_agent(UNSETTLED_LAW)
    one, anonymous = record(), record("--anonymous", "--json")
    first, _ = (
        guest(PayloadGuest(name=f"twin{seed}", memory_mib=24, common_mib=8, own_mib=8, seed=seed)) for seed in (1, 2)
    )
    agent.sweep()
    first.domain.destroy()
    agent.wait_for_pass("stopped")
    agent.reload()
    told = one.lines()
    code, said, complained = one.end(signal.SIGINT)
    assert (code, complained) == (0, "")
    made = one.passes()
    assert said == f"Recorded   {len(made)} passes to {one.file}, 0 missed\n"
    assert one.file.stat().st_mode & 0o777 == 0o600
    header, end = told[0], one.lines()[-1]
    assert (header["kind"], header["uri"], header["law"]["policy"]) == ("header", agent.uri, "adaptive")
    assert header["law"]["config"]["adaptive.engage"] == "always"
    assert (end["kind"], end["passes"], end["missed"]) == ("end", len(made), 0)
    assert [line["seq"] for line in made] == list(range(made[0]["seq"], made[0]["seq"] + len(made)))
    assert {"twin1", "twin2"} == {one["name"] for line in made for one in line["snapshot"]["guests"]}
    assert {"full_scan", "idle", "wait"} <= {line["decision"]["rule"] for line in made}
    assert [line["kind"] for line in told if "state" in line] == ["pass"], "every pass but the first follows from one"

    again = replayed(agent.home, one.file)
    assert again["sums"]["passes"] == len(made)
    assert (again["sums"]["differing"], again["sums"]["began_anew"]) == (0, 0)
    for step, line in zip(again["steps"], made, strict=True):
        assert step["replayed"]["reason"] == line["decision"]["reason"]
        assert step["replayed"]["next_pass_s"] == line["decision"]["next_pass_s"]
    other = replayed(agent.home, one.file, "--policy", "ksmtuned", "--set", "ksmtuned.thres_coef=100")
    assert other["sums"]["differing"] > 0
    assert {step["replayed"]["rule"] for step in other["steps"]} <= {"boost", "decay", "hold"}

    code, said, _ = anonymous.end()
    assert code == 0
    told_of = {"schema": 1, "file": str(anonymous.file), "passes": len(anonymous.passes()), "missed": 0}
    assert json.loads(said) == told_of
    text = anonymous.file.read_text(encoding="utf-8")
    assert "twin" not in text
    assert "guest-2" in text
    assert replayed(agent.home, anonymous.file)["sums"]["differing"] == 0
