"""Where a command reads the history: from the agent that serves the host, else from the file."""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.contract.test_history import EVENT, SAMPLE
from tests.lab.stand_in import StandIn
from tests.unit.test_trace import SUMMARY
from virtksm.agent.sockets import Handler
from virtksm.cli.history import Excerpt, read_decisions, read_history
from virtksm.cli.main import parse
from virtksm.errors import VirtksmError
from virtksm.history.samples import as_table
from virtksm.paths import RuntimePaths
from virtksm.store.history import HistoryFile
from virtksm.trace.text import dump_line
from virtksm.values import replace


@pytest.fixture
def options(paths: RuntimePaths) -> argparse.Namespace:
    config = Path(paths.root) / "virtksm.toml"
    config.touch()
    return parse(["--config", str(config), "--runtime-dir", paths.root, "--state-dir", paths.state_dir, "status"])


def beside(options: argparse.Namespace, handle: Handler) -> StandIn:
    return StandIn(RuntimePaths(options.runtime_dir), handle)


def fill(options: argparse.Namespace, host: str) -> None:
    recent = replace(SAMPLE, at_s=time.time() - 5)
    HistoryFile(f"{options.state_dir}/{host}.history").add(
        [replace(recent, at_s=recent.at_s - 1000), recent, replace(recent, at_s=recent.at_s + 1000)],
        [replace(EVENT, at_s=recent.at_s)],
        [dump_line(SUMMARY), dump_line(replace(SUMMARY, at_s=1.0))],
    )


@pytest.mark.parametrize(
    ("uri", "host"),
    [
        (None, "local"),
        ("qemu:///system", "local"),
        ("qemu:///session", "local"),
        ("qemu+ssh://far/system", "qemu_2bssh_3a_2f_2ffar_2fsystem"),
    ],
)
def test_without_an_agent_the_file_of_that_host_tells(
    options: argparse.Namespace, uri: str | None, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LIBVIRT_DEFAULT_URI", raising=False)
    options.connect = uri
    assert read_history(options, seconds=60).samples == ()
    fill(options, host)
    recent = read_history(options, seconds=60)
    assert (len(recent.samples), len(recent.events)) == (1, 1)
    assert len(read_history(options, seconds=2000, points=100).samples) == 2, "not what is ahead of the clock"
    assert len(read_history(options, seconds=2000, points=1).samples) == 1
    assert [one.at_s for one in read_decisions(options, 1)] == [1.0]


def test_the_agent_is_asked_first_and_another_hosts_agent_is_not_believed(options: argparse.Namespace) -> None:
    fill(options, "local")
    asked: list[dict[str, object]] = []

    async def handle(request: Mapping[str, object]) -> dict[str, object]:
        asked.append(dict(request))
        if request.get("uri") == "other:///host":
            return {"ok": False, "other_uri": "qemu:///system"}
        if request["op"] == "history":
            return {"ok": True, "history": {"now_s": 5, **as_table([SAMPLE], [EVENT, EVENT])}}
        return {"ok": True, "decisions": [dump_line(SUMMARY)]}

    with beside(options, handle):
        expected = Excerpt(now_s=5, samples=(SAMPLE,), events=(EVENT, EVENT))
        assert read_history(options, seconds=60, points=7) == expected
        options.connect = "qemu:///system"
        assert read_history(options, seconds=60, points=7) == expected
        options.connect = None
        assert read_decisions(options, 3) == (SUMMARY,)
        options.connect = "other:///host"
        assert len(read_history(options, seconds=60).samples) == 1
    assert asked[:3] == [
        {"op": "history", "seconds": 60, "points": 7},
        {"op": "history", "seconds": 60, "points": 7, "uri": "qemu:///system"},
        {"op": "decisions", "last": 3},
    ]


@pytest.mark.parametrize(
    "answer",
    [
        {"ok": False, "error": "the disk hangs", "exit_code": 1},
        {"ok": True, "history": [], "decisions": {}},
        {"ok": True, "history": {"now_s": "x", "samples": {}, "events": {}}, "decisions": [1]},
        {"ok": True, "history": {"now_s": 1, "samples": {}, "events": {}}, "decisions": ["{}"]},
        {"ok": True},
    ],
)
def test_an_agent_that_cannot_tell_is_an_error_with_a_remedy(
    options: argparse.Namespace, answer: dict[str, object]
) -> None:
    async def handle(_request: Mapping[str, object]) -> dict[str, object]:
        return answer

    with beside(options, handle):
        for read in (lambda: read_history(options, seconds=60), lambda: read_decisions(options, 3)):
            with pytest.raises(VirtksmError, match="systemctl restart virtksm"):
                read()
