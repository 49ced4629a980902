"""What the agent tells of itself: when libvirt counts as silent, what may be stranded, what it costs; and who asks."""

import asyncio
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import SAMPLE, FakeSwitch
from tests.lab.agent_bench import requests_without_libvirt
from tests.lab.listening import listening
from tests.lab.nobody import run_as_nobody
from tests.lab.samples import CALM, NOW, SCANNING, agent_facts, passed
from tests.lab.stand_in import StandIn
from virtksm.agent.status import A_CONNECTION, SILENT_AFTER_S, AgentFacts, worst_core_percent
from virtksm.cli.layout import to_lines
from virtksm.cli.main import main, parse
from virtksm.cli.status import View
from virtksm.cli.status_text import status_rows
from virtksm.errors import ExitCode, LibvirtTimeout
from virtksm.history.samples import as_table
from virtksm.host.bounded import Waiting
from virtksm.model.current import after_pass
from virtksm.model.report import PassReport
from virtksm.model.snapshot import IDLE, Settings
from virtksm.paths import RuntimePaths
from virtksm.values import replace

A_CALL = Waiting(what="pass", since_s=1000.0 - SILENT_AFTER_S)
LATE = Waiting(what="pass", since_s=990.0)


@pytest.mark.parametrize(
    ("lost_s", "waiting", "silence"),
    [
        (None, None, None),
        (None, A_CALL, None),
        (None, LATE, LATE),
        (900.0, None, Waiting(what=A_CONNECTION, since_s=900.0)),
        (900.0, Waiting(what="open", since_s=999.5), Waiting(what=A_CONNECTION, since_s=900.0)),
        (900.0, Waiting(what="open", since_s=950.0), Waiting(what="open", since_s=900.0)),
        (995.0, LATE, LATE),
    ],
)
def test_libvirt_is_silent_without_a_connection_or_when_a_call_is_late(
    lost_s: float | None, waiting: Waiting | None, silence: Waiting | None
) -> None:
    assert agent_facts(lost_s=lost_s, waiting=waiting).silence == silence


@pytest.mark.parametrize(
    ("last", "lost_s", "waiting", "stranded"),
    [
        (passed(SCANNING), None, None, False),
        (passed(SCANNING), 900.0, None, True),
        (passed(SCANNING, run=0), 900.0, None, False),
        (passed(SCANNING, run=None), 900.0, None, True),
        (passed(IDLE), 900.0, None, False),
        (passed(IDLE), None, LATE, True),
        (passed(IDLE), None, replace(LATE, what="close"), False),
        (None, 900.0, None, None),
        (None, None, LATE, True),
    ],
)
def test_a_sweep_may_be_stranded_while_nobody_can_slow_ksmd_down(
    last: PassReport | None, lost_s: float | None, waiting: Waiting | None, stranded: bool | None
) -> None:
    assert agent_facts(last=last, lost_s=lost_s, waiting=waiting).may_be_stranded is stranded


@pytest.mark.parametrize(
    ("settings", "page_kib", "percent"),
    [
        (IDLE, 4, 0.0),
        (SCANNING, 4, 3.2),  # two seconds of a minute, and the batch's own time (docs/policies.md, adaptive, rule 5)
        (Settings(pages_to_scan=100_000, sleep_millisecs=0), 4, 100.0),
        (Settings(pages_to_scan=1250, sleep_millisecs=10), 4, 46.7),
        (Settings(pages_to_scan=1250, sleep_millisecs=10), 64, 93.3),
        (Settings(pages_to_scan=None, sleep_millisecs=None), 4, 0.0),
    ],
)
def test_what_it_costs_at_worst_follows_from_the_settings(settings: Settings, page_kib: int, percent: float) -> None:
    last = replace(passed(IDLE), after=settings)
    last = replace(last, snapshot=replace(last.snapshot, ksm=replace(last.snapshot.ksm, page_kib=page_kib)))
    assert round(worst_core_percent(last), 1) == percent


@pytest.mark.parametrize(("left_s", "told_s"), [(12.0, 2.0), (5.0, 0.0), (None, None)])
def test_a_full_scan_is_told_with_the_time_left_from_now_on(left_s: float | None, told_s: float | None) -> None:
    numbers = {"full_scan_kib": 100, "scanned_kib": 40, "full_scan_left_s": left_s}
    last = passed(SCANNING)
    reason = replace(last.decision.reason, numbers=numbers)
    last = replace(last, decision=replace(last.decision, reason=reason))
    told = agent_facts(last=last).as_dict(NOW)["full_scan"]
    assert told == {"done_kib": 40, "total_kib": 100, "left_s": told_s}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {},
            [
                "Libvirt    connected",
                "Last pass  10 s ago (started): settings changed",
                "Next       pass in 4 s",
                "Reason     as told (rule told)",
            ],
        ),
        ({"last": None, "last_s": None, "next_s": None}, ["Reason     no pass yet", "Next       no pass is planned"]),
        (
            {"lost_s": 940.0, "error": "refused"},
            [
                "Libvirt    not answering for 60 s, waiting for a connection: refused",
                "Warning    ksmd may keep scanning (up to 3 % of a core) until libvirt answers",
            ],
        ),
        ({"lost_s": 940.0, "last": None}, ["Warning    ksmd may keep scanning until libvirt answers"]),
        ({"waiting": LATE, "last": None}, ["Warning    ksmd may keep scanning until libvirt answers"]),
        ({"next_s": 990.0}, ["Next       pass in 0 s"]),
    ],
)
def test_people_are_told_what_the_agent_knows(changes: dict[str, Any], told: list[str]) -> None:
    lines = to_lines(status_rows(shown(agent_facts(**changes)), verbose=True))
    assert [text for text in told if text not in lines] == []
    assert ("lost_s" in changes or "waiting" in changes) == any("may keep scanning" in line for line in lines)


def shown(facts: AgentFacts, **changes: object) -> dict[str, Any]:
    """Return an agent's answer with the fields that the command adds."""
    history = {"ksmd": {"cpu_seconds": None}, "saved_hour": {"saved_kib": []}, "events": [], "history_error": None}
    answer: dict[str, Any] = json.loads(json.dumps(facts.as_dict(NOW)))
    return {**answer, **history, **changes}


def test_it_answers_while_a_call_of_libvirts_hangs_and_the_command_prints_that(
    paths: RuntimePaths, capsys: pytest.CaptureFixture[str]
) -> None:
    released = threading.Event()
    requests = requests_without_libvirt(FakeSwitch())
    calls = requests.agent.connection.calls

    async def handle(request: Mapping[str, object]) -> dict[str, object]:
        if calls.waiting is None:
            with pytest.raises(LibvirtTimeout):
                await calls.run("open", released.wait, 0.001)
        assert calls.waiting is not None
        assert calls.waiting.what == "open"
        return await requests.handle(request)

    with StandIn(paths, handle):
        assert main(["--runtime-dir", paths.root, "status", "--json"]) == ExitCode.DONE
        told = json.loads(capsys.readouterr().out)
        assert told["uri"] == "qemu:///system"
        libvirt = told["libvirt"]
        assert (libvirt["connected"], libvirt["answers"], libvirt["waiting_for"]) == (False, False, "a connection")
        assert main(["--runtime-dir", paths.root, "status"]) == ExitCode.DONE
        assert capsys.readouterr().out.startswith("Agent      running, policy adaptive, qemu:///system\n")
        released.set()


def test_ksmds_share_is_of_the_last_minutes_from_the_first_frame_of_a_watch_on(paths: RuntimePaths) -> None:
    samples = [replace(SAMPLE, at_s=at_s, ksmd_cpu_seconds=at_s / 10) for at_s in (1000.0, 1290.0)]
    now_s = 1100.0

    async def handle(request: Mapping[str, object]) -> dict[str, object]:
        if request["op"] == "history":
            known = as_table([one for one in samples if one.at_s < now_s], [])
            return {"ok": True, "history": {"now_s": now_s, **known}}
        current = after_pass(CALM)
        current = replace(current, ksm=replace(current.ksm, ksmd_cpu_seconds=now_s / 10))
        return {"ok": True, "status": agent_facts(current=current).as_dict(NOW)}

    view = View(parse(["--runtime-dir", paths.root, "status", "--watch"]))
    with StandIn(paths, handle):
        assert view.read()["ksmd"] == {"cpu_seconds": 110.0, "core_percent": 10.0, "over_s": 100.0}
        now_s = 1299.0
        assert view.read()["ksmd"] == {"cpu_seconds": 129.9, "core_percent": 10.0, "over_s": 299.0}


def test_the_last_hour_is_told_with_the_parts_of_what_is_saved(paths: RuntimePaths) -> None:
    samples = [replace(SAMPLE, at_s=1000.0), replace(SAMPLE, at_s=1090.0, saved_kib=900, zero_kib=200, freed_kib=300)]

    async def handle(request: Mapping[str, object]) -> dict[str, object]:
        if request["op"] == "history":
            return {"ok": True, "history": {"now_s": 1150.0, **as_table(samples, [])}}
        current = after_pass(CALM)
        counted = replace(current.ksm, pages_shared=1, pages_sharing=2, ksm_zero_pages=5, freed_kib=7)
        return {"ok": True, "status": agent_facts(current=replace(current, ksm=counted)).as_dict(NOW)}

    with StandIn(paths, handle):
        hour = View(parse(["--runtime-dir", paths.root, "status"])).read()["saved_hour"]
    last = {name: levels[-4:] for name, levels in hour.items() if name != "step_s"}
    assert last == {
        "saved_kib": [None, SAMPLE.saved_kib, 900, 35],
        "zero_kib": [None, None, 200, 20],
        "freed_kib": [None, None, 300, 7],
    }


def test_an_agent_of_another_version_is_told_as_such(paths: RuntimePaths, capsys: pytest.CaptureFixture[str]) -> None:
    answer = b'{"ok": false, "error": "unknown op \'status\'", "exit_code": 2}\n'
    with listening(Path(paths.control_socket), answer):
        assert main(["--runtime-dir", paths.root, "status"]) == ExitCode.FAILED
    assert "unknown op 'status'\nhint: the agent may be of another version" in capsys.readouterr().err


jsons: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
requests = st.fixed_dictionaries(
    {},
    optional={"op": st.sampled_from(["retune", "status", "trace"]) | jsons, "uri": st.just("qemu:///system") | jsons}
    | {"dry_run": jsons},
)


@given(request=requests)
def test_any_request_is_answered_without_a_connection(request: dict[str, object]) -> None:
    requests = requests_without_libvirt(FakeSwitch())
    answer = asyncio.run(requests.handle(request))
    assert json.loads(json.dumps(answer)).keys() >= {"ok"}
    assert len(json.dumps(answer)) < 4096
    if not answer["ok"] and "other_uri" not in answer:
        assert answer["error"]
        assert answer["exit_code"] in list(map(int, ExitCode))
    assert requests.agent.passes.requests == [], "nothing is kept of it"


def test_without_an_agent_it_says_what_can_be_seen_and_keeps_nothing(
    paths: RuntimePaths, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--runtime-dir", paths.root, "--state-dir", paths.state_dir, "status", "--connect", "qemu:///system"]
    assert main([*command, "--json"]) == ExitCode.FAILED
    told = json.loads(capsys.readouterr().out)
    assert (told["agent"], told["uri"], told["policy"]) == (False, "qemu:///system", "adaptive")
    assert (told["now"]["origin"], told["paused"], told["last_pass"], told["events"]) == ("local", False, None, [])
    assert told["stranded"]["possible"] is None
    assert main(command) == ExitCode.FAILED
    assert capsys.readouterr().out.startswith("Agent      not running for qemu:///system (systemctl start virtksm)")
    assert sorted(path.name for path in Path(paths.root).rglob("*")) == ["agent"]


@pytest.mark.parametrize("uri", ["qemu+tcp://127.0.0.1:1/system", "no-such-alias"])
def test_a_host_that_neither_agent_nor_libvirt_tells_of_is_an_error(
    paths: RuntimePaths, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--runtime-dir", paths.root, "status", "--connect", uri]) == ExitCode.UNREACHABLE
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 2)
    assert uri in told.err


@pytest.mark.real
def test_who_may_not_ask_sees_what_everybody_may_and_how_to_see_more(paths: RuntimePaths) -> None:
    folders = ["--runtime-dir", paths.root, "--state-dir", paths.state_dir]
    done = run_as_nobody(*folders, "status", "--connect", "qemu:///system")
    assert (done.returncode, done.stderr) == (ExitCode.FAILED, "")
    first, *others = done.stdout.splitlines()
    assert first.startswith("Agent      not for this user to ask: sudo virtksm status, or join ")
    assert [line.split()[0] for line in others] == ["Libvirt", "KSM", "Guests", "Saved", "ksmd"]
    told = json.loads(run_as_nobody(*folders, "status", "--connect", "qemu:///system", "--json").stdout)
    assert (told["agent"], told["history_error"], told["now"]["origin"]) == (None, None, "local")
    refused = run_as_nobody("--runtime-dir", paths.root, "retune")
    assert refused.returncode == ExitCode.FAILED
    assert refused.stderr.startswith("virtksm: error: only root may do this\nhint: sudo virtksm --runtime-dir ")
