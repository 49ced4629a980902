"""What every command really prints with --json is what docs/json-schema.json says, to the last field."""

import json
import time
from datetime import datetime
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker

from demo.guests import PayloadGuest
from manual.json_schema import json_schema
from manual.outputs import COMMANDS
from tests.fakes import SAMPLE
from tests.lab.fixtures import GuestFactory
from tests.real.agent_process import UNSETTLED_LAW, AgentFactory, AgentHome
from virtksm.store.history import HistoryFile
from virtksm.values import replace

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("ksm")]

FORMATS = FormatChecker(())
FORMATS.checks("date-time", ValueError)(lambda text: bool(datetime.fromisoformat(text)))


def closed(schema: Any) -> Any:  # noqa: ANN401  # JSON
    """Return a schema whose objects have no further fields."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: closed(one) for name, one in schema.items()}
    return inner | {"additionalProperties": False} if "required" in inner else inner


class Commands:
    """Runs commands and holds what they print against the schema."""

    def __init__(self, home: AgentHome, uri: str) -> None:
        self._home, self._uri = home, uri
        self._schema = closed(json.loads(json_schema()))
        Draft202012Validator.check_schema(self._schema)
        self.printed: set[str] = set()

    def run(self, name: str, *arguments: str, codes: tuple[int, ...] = (0,)) -> dict[str, Any]:
        done = self._home.run(*name.split(), *arguments, "--json", "--connect", self._uri)
        assert done.returncode in codes, done.stderr
        printed: dict[str, Any] = json.loads(done.stdout)
        schema = {**self._schema, "$ref": f"#/$defs/virtksm {name}"}
        errors = Draft202012Validator(schema, format_checker=FORMATS).iter_errors(printed)
        assert [f"{name}: {error.json_path}: {error.message}" for error in errors] == []
        self.printed.add(name)
        return printed


def test_every_command_prints_what_the_schema_says(start_agent: AgentFactory, guest: GuestFactory) -> None:
    before = HistoryFile(f"{start_agent.home.state_dir}/local.history")
    before.add([replace(SAMPLE, at_s=time.time() - 60)], [], [])  # a curve needs two, and its own second is due later
    agent = start_agent(UNSETTLED_LAW)
    guest(PayloadGuest(name="one", memory_mib=24, common_mib=8, seed=1))
    agent.sweep()
    trace, picture = agent.home.folder / "trace.jsonl", agent.home.folder / "picture.svg"
    commands = Commands(agent.home, agent.uri)
    run = commands.run

    assert run("wait", "--settled")["result"] == "settled"
    status = run("status")
    assert [event["domain"] for event in status["events"]] == ["one"]
    assert run("explain", "--last", "100")["decisions"] != []
    assert run("retune")["decision"]["thresholds"] != []
    assert [one["answer"]["agent"] for one in run("fleet status")["hosts"]] == [True]
    run("fleet retune")
    assert [one["name"] for one in run("guests")["guests"]] == ["one"]
    run("headroom")
    assert run("guest show", "one", "--backends")["qemu"]["backends"] != []
    run("guest unmerge", "one")
    run("guest merge", "one")
    run("doctor", codes=(0, 1))
    run("fleet doctor", codes=(0, 1))
    run("config show")
    run("config path")
    run("version")
    run("trace record", str(trace), "--for", "0")
    assert run("trace replay", str(trace), "--all")["steps"] != []
    run("trace plot", "--output", str(picture))
    assert run("unmerge", "--check")["fits"] is True
    run("pause")
    assert run("wait", "--settled", codes=(6,))["result"] == "paused"
    run("verify-off", codes=(1,))
    run("resume")
    run("fleet pause")
    run("fleet resume")

    assert agent.stop() == 0
    assert run("status", codes=(1,))["agent"] is False
    assert run("restore")["action"] == "restore"
    agent.home.configure('on_exit = "leave"\n')
    assert run("restore", "--on-exit")["action"] == "leave"
    assert commands.printed == set(COMMANDS)
