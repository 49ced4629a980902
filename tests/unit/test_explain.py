"""`virtksm explain`: every rule has its meaning, and a decision is told with all that led to it."""

import ast
import inspect
import json
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.lab.hang import HANG_S
from tests.real.agent_process import VIRTKSM
from tests.unit.test_policy_adaptive import AUTO, TIMER, snap, stories
from tests.unit.test_trace import SUMMARY
from virtksm.cli.main import main
from virtksm.config.schema import all_keys
from virtksm.model.decision import Pause
from virtksm.model.snapshot import IDLE
from virtksm.policy import ksmtuned
from virtksm.policy.off import RULE, decide_off
from virtksm.policy.rules import MEANINGS, meaning_of
from virtksm.store.history import HistoryFile
from virtksm.trace.text import pass_values
from virtksm.values import replace

GIB = 1024 * 1024
AT_S = 1_767_323_045.5


def pass_of(**changes: Any) -> dict[str, Any]:  # noqa: ANN401  # fields of the line
    """Return a line of a decision as JSON values."""
    seen = snap(5, {"a": GIB})
    decision, _ = AUTO.decide(seen, AUTO.first_state(seen), TIMER)
    found = replace(seen, ksm=replace(seen.ksm, settings=replace(IDLE, pages_to_scan=100)))
    line = replace(SUMMARY, at_s=AT_S, triggers=TIMER, snapshot=found, decision=decision)
    return {**pass_values(line.summary([{"quantity": "available_kib", "text": "engages when"}])), **changes}


def fill(folder: Path, *passes: Mapping[str, Any]) -> None:
    """Write decisions as an agent does."""
    HistoryFile(str(folder / "local.history")).add((), (), [json.dumps(values) for values in passes])


def explained(folder: Path, *arguments: str) -> int:
    """Explain where no agent runs."""
    folders = ["--runtime-dir", str(folder / "run"), "--state-dir", str(folder)]
    return main([*folders, "explain", "--connect", "qemu:///system", *arguments])


def test_every_rule_of_every_policy_has_its_meaning_and_no_other_has() -> None:
    assert set(MEANINGS) == {*all_keys()["policy"].choices}
    assert set(MEANINGS["adaptive"]) == {*stories(), RULE}
    law = ast.parse(inspect.getsource(ksmtuned))
    named = {word.value for word in ast.walk(law) if isinstance(word, ast.Constant) and isinstance(word.value, str)}
    rules = set(MEANINGS["ksmtuned"]) - {RULE}
    assert rules <= named
    assert named & {"unknown", "stop", "boost", "decay", "hold"} == rules


def test_a_decision_is_told_with_its_rule_and_thresholds_and_for_v_with_its_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        fill(tmp_path, pass_of())
        assert explained(tmp_path) == 0
    finally:
        monkeypatch.undo()
        time.tzset()
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "2026-01-02 12:04:05  timer: applied", "local time"
    assert lines == [
        "Decided    memory is not short: 40.0 of 64.0 GiB available, guests can grow to 1.0 GiB",
        f"Rule       disengaged: {MEANINGS['adaptive']['disengaged']}",
        "Threshold  engages when",
        "Changed    pages_to_scan 100 -> 0",
    ]
    assert explained(tmp_path, "-v") == 0
    (numbers,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Numbers ")]
    assert "memory 1.0 GiB, settling 1.0 GiB" in numbers
    assert "waited 0.0 MiB s, full_scan_cost 1.835 s, page_cost 7 us" in numbers


@pytest.mark.parametrize(
    ("counted", "told"),
    [
        ({}, []),
        ({"ksm_zero_pages": 0, "freed_kib": 0}, []),
        ({"ksm_zero_pages": 512}, ["Saved      3.0 MiB: 1.0 MiB by shared pages, 2.0 MiB by zero pages"]),
        ({"pages_sharing": 0, "freed_kib": 4096}, ["Saved      4.0 MiB: 4.0 MiB given back by split huge pages"]),
    ],
)
def test_what_of_the_saved_memory_is_no_shared_pages_is_told_where_there_is_any(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], counted: dict[str, int], told: list[str]
) -> None:
    values = pass_of()
    values["snapshot"]["ksm"] |= {"pages_shared": 1, "pages_sharing": 256, "page_kib": 4, **counted}
    fill(tmp_path, values)
    assert explained(tmp_path) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("Saved")] == told


def test_the_last_ones_are_told_the_oldest_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path, *(pass_of(triggers=[name]) for name in ("started", "stopped", "retune")))
    assert explained(tmp_path, "--last", "2", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["schema"] == 1
    assert [one["pass"]["triggers"] for one in printed["decisions"]] == [["stopped"], ["retune"]]
    assert set(printed["decisions"][0]) == {"at", "rule_means", "pass"}
    assert printed["decisions"][0]["pass"]["decision"]["thresholds"][0]["quantity"] == "available_bytes"


def test_decisions_that_come_are_followed_until_ctrl_c(tmp_path: Path) -> None:
    fill(tmp_path, pass_of(triggers=["started"]))
    folders = ["--runtime-dir", str(tmp_path / "run"), "--state-dir", str(tmp_path)]
    command = [VIRTKSM, *folders, "explain", "--connect", "qemu:///system", "--follow", "--last", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline().endswith("started: applied\n")
        fill(tmp_path, pass_of(at_s=AT_S + 1, triggers=["stopped"]))
        lines: list[str] = []
        while not (lines and lines[-1].endswith("stopped: applied\n")):
            lines.append(process.stdout.readline())
            assert lines[-1], "it ended"
        assert lines[-2] == "\n", "a blank line is between two"
        assert not any("started" in line for line in lines), "none is shown twice"
        fill(tmp_path, pass_of(at_s=AT_S - 3600, triggers=["retune"]))  # the clock was set back
        while not lines[-1].endswith("retune: applied\n"):
            lines.append(process.stdout.readline())
        assert len([line for line in lines if "stopped" in line]) == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(HANG_S) == 0
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def test_without_a_decision_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explained(tmp_path) == 0
    assert capsys.readouterr().out == "the history has no decision of this host\n"
    assert explained(tmp_path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["decisions"] == []


def test_a_decision_of_another_version_is_told_as_far_as_it_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decision = pass_of()["decision"]
    later = {"rule": "later", "numbers": {"odd": None, "share": 0.5, "sleep_ms": 4_294_967_295}}
    earlier = {name: value for name, value in pass_of().items() if name not in ("refused", "foreign")}
    fill(tmp_path, {**earlier, "decision": {**decision, **later, "thresholds": [{"text": "does so"}]}, "later": 1})
    del decision["thresholds"]
    fill(tmp_path, pass_of(decision=decision))
    assert explained(tmp_path, "--verbose") == 0
    said = capsys.readouterr().out
    assert "Rule       later: not a rule of this version of virtksm" in said
    assert "odd unknown, share 0.5, sleep 4294967295 ms" in said
    assert said.count("Threshold ") == said.count("Threshold  does so\n") == 1


def test_paused_is_explained_whatever_the_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    decision = decide_off(Pause(since="then"), was_off=False)
    fill(tmp_path, pass_values(replace(SUMMARY, decision=decision)))
    assert explained(tmp_path) == 0
    assert "Rule       paused: `virtksm pause` outranks every policy" in capsys.readouterr().out
    assert meaning_of("nonsense", RULE) != meaning_of("ksmtuned", RULE)


@pytest.mark.parametrize("last", ["0", "101", "x", "9" * 5000])
def test_how_many_is_within_what_is_kept(tmp_path: Path, last: str) -> None:
    assert explained(tmp_path, "--last", last) == 2
