"""`virtksm explain`: every rule has its meaning, and a remembered decision is told with all that led to it."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_policy_adaptive import AUTO, TIMER, snap, stories
from virtksm.cli.main import main
from virtksm.history.samples import Told
from virtksm.model.decision import SwitchedOff
from virtksm.model.report import Outcome, PassReport
from virtksm.model.snapshot import IDLE
from virtksm.policy import POLICIES, ksmtuned
from virtksm.policy.off import RULE, decide_off
from virtksm.policy.rules import MEANINGS, meaning_of
from virtksm.policy.thresholds import find_thresholds
from virtksm.store.history import HistoryFile

GIB = 1024 * 1024
URI = "test:///default"


def record_of(**changes: Any) -> dict[str, Any]:  # noqa: ANN401  # fields of the report
    seen = snap(5, {"a": GIB})
    decision, state = AUTO.decide(seen, AUTO.first_state(seen), TIMER)
    report = PassReport(
        uri=URI,
        policy="adaptive",
        triggers=TIMER,
        snapshot=seen,
        decision=decision,
        outcome=Outcome.APPLIED,
        before=replace(IDLE, pages_to_scan=100),
        after=IDLE,
        duration_ms=1.5,
        find_thresholds=lambda: find_thresholds(AUTO, seen, state, decision),
    )
    return {**report.as_dict(with_thresholds=True), **changes}


def remember(folder: Path, *records: Mapping[str, Any], at_s: float = 1_767_323_045.5) -> None:
    """Keep decisions as an agent does."""
    history = HistoryFile(str(folder / "local.history"))
    history.keep((), (), [Told(at_s=at_s + number, report=report) for number, report in enumerate(records)])


def explained(folder: Path, *arguments: str) -> int:
    """Explain where no agent runs."""
    folders = ["--runtime-dir", str(folder / "run"), "--state-dir", str(folder)]
    return main([*folders, "explain", "--connect", "qemu:///system", *arguments])


def test_every_rule_of_every_policy_has_its_meaning_and_no_other_has() -> None:
    assert set(MEANINGS) == set(POLICIES)
    assert set(MEANINGS["adaptive"]) == {*stories(), RULE}
    law = ast.parse(inspect.getsource(ksmtuned))
    named = {word.value for word in ast.walk(law) if isinstance(word, ast.Constant) and isinstance(word.value, str)}
    rules = set(MEANINGS["ksmtuned"]) - {RULE}
    assert rules <= named
    assert named & {"unknown", "stop", "boost", "decay", "hold"} == rules


def test_a_decision_is_told_with_its_rule_its_thresholds_and_its_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remember(tmp_path, record_of())
    assert explained(tmp_path) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "2026-01-02 03:04:05+00:00  for timer: applied"
    assert lines[0] == ("  decided   memory is not short: 40.0 of 64.0 GiB available, guests can grow to 1.0 GiB")
    assert lines[1].startswith("  rule      disengaged of adaptive: rule 1: it acts when memory is short")
    assert lines[2] == "  threshold engages when available memory falls to 12.8 GiB; now 40.0 GiB"
    told = "\n".join(lines)
    assert "memory 1.0 GiB, settling 1.0 GiB" in told
    assert "waited 0.0 MiB s, full_scan_cost 1.835 s, page_cost 7 us" in " ".join(told.split())
    assert "  changed   pages_to_scan 100 -> 0" in told
    assert all(len(line) <= 120 for line in lines)


def test_the_last_ones_are_told_the_oldest_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remember(tmp_path, *(record_of(triggers=[name]) for name in ("one", "two", "three")))
    assert explained(tmp_path, "--last", "2", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == 1
    assert [one["pass"]["triggers"] for one in told["decisions"]] == [["two"], ["three"]]
    assert set(told["decisions"][0]) == {"at_s", "at", "rule_means", "pass"}
    assert told["decisions"][0]["pass"]["decision"]["thresholds"][0]["quantity"] == "available_kib"


def test_where_nothing_is_remembered_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explained(tmp_path) == 0
    assert capsys.readouterr().out == "no decision is remembered of this host\n"
    assert explained(tmp_path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["decisions"] == []


def test_a_decision_of_another_version_is_told_as_far_as_it_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = record_of()
    del report["decision"]["thresholds"]
    report["decision"] |= {"rule": "later", "numbers": {"odd": None, "share": 0.5, "sleep_ms": 4_294_967_295}}
    remember(tmp_path, report)
    assert explained(tmp_path) == 0
    said = capsys.readouterr().out
    assert "later of adaptive: not a rule of this version of virtksm" in said
    assert "odd unknown, share 0.5, sleep 4294967295 ms" in said


def test_switched_off_is_explained_whatever_the_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    decision = decide_off(SwitchedOff(since="then"), was_off=False)
    reason = {"rule": decision.reason.rule, "reason": decision.reason.text, "numbers": {}, "thresholds": []}
    remember(tmp_path, record_of(decision=reason))
    assert explained(tmp_path) == 0
    assert "rule      switched_off of adaptive: `virtksm off` outranks every policy" in capsys.readouterr().out
    assert meaning_of("nonsense", RULE) != meaning_of("ksmtuned", RULE)


@pytest.mark.parametrize(
    "damage", [{"decision": None}, {"triggers": "x"}, {"changed": []}, {"policy": 1}, {"outcome": 1}]
)
def test_a_damaged_decision_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: dict[str, object]
) -> None:
    remember(tmp_path, record_of(**damage), at_s=1e17)
    assert explained(tmp_path) == 1
    assert "cannot be understood" in capsys.readouterr().err


@pytest.mark.parametrize("last", ["0", "101", "x", "9" * 5000, "-1"])
def test_how_many_is_within_what_is_kept(tmp_path: Path, last: str) -> None:
    with pytest.raises(SystemExit) as ended:
        explained(tmp_path, "--last", last)
    assert ended.value.code == 2


def test_texts_harm_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = record_of(triggers=["\x1b[2J"])
    report["decision"] |= {"reason": "\x1b]0;evil\x07"}
    remember(tmp_path, report)
    assert explained(tmp_path) == 0
    assert "\x1b" not in capsys.readouterr().out
