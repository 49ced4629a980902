"""`virtksm trace plot`: which times and names it takes, a trace as a history, and that mistakes leave no file."""

import json
import time
from pathlib import Path

import pytest

from tests.fakes import LOCAL_HOST, SAMPLE
from virtksm.cli.main import main
from virtksm.cli.trace.plot import excerpt_of
from virtksm.history.samples import GuestEvent
from virtksm.model.decision import Decision, Reason, Trigger, Triggers
from virtksm.model.snapshot import Guest, KsmState, Settings, Snapshot, Source
from virtksm.store.history import HistoryFile
from virtksm.trace import Gap, Line, Pass
from virtksm.values import replace

TRACES = Path(__file__).parents[1] / "traces"
IDLE = Settings(pages_to_scan=0, sleep_millisecs=10_000)
WEB, DB = Guest(uuid="1", name="web", domain_id=1), Guest(uuid="2", name="db", domain_id=2)


def make_pass(at_s: float, *guests: Guest) -> Pass:
    ksm = KsmState(settings=IDLE, pages_shared=10, pages_sharing=256, ksm_zero_pages=256, page_kib=4)
    return Pass(
        seq=1,
        at_s=at_s,
        triggers=Triggers(kinds=frozenset({Trigger.TIMER})),
        snapshot=Snapshot(taken_s=1.0, source=Source.LOCAL, host=LOCAL_HOST, ksm=ksm, guests=guests),
        decision=Decision(target=IDLE, reason=Reason(rule="idle", text="covered"), next_pass_s=None),
        outcome="unchanged",
        after=IDLE,
    )


@pytest.mark.parametrize("name", ["x.pdf", "x", "svg"])
def test_a_picture_of_another_kind_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "plot", "-o", name]) == 2
    assert "ends neither in .svg nor in .png" in capsys.readouterr().err


def test_a_trace_that_is_none_is_refused_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text("nonsense\n", encoding="ascii")
    assert main(["trace", "plot", str(trace), "-o", str(tmp_path / "x.svg")]) == 1
    assert f"{trace}:1: the line is no JSON" in capsys.readouterr().err
    assert not (tmp_path / "x.svg").exists()


def test_a_picture_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "missing" / "x.svg"
    assert main(["trace", "plot", str(TRACES / "twins.jsonl"), "-o", str(path)]) == 1
    said = capsys.readouterr().err
    assert (
        said == f"virtksm: error: {path}: it cannot be written: No such file or directory\nhint: ls -ld {path.parent}\n"
    )


def test_a_trace_has_a_sample_of_each_pass_and_the_guests_that_came_and_went() -> None:
    lines: list[Line] = [make_pass(10.0, WEB), make_pass(20.0, WEB, DB), Gap(missed=3), make_pass(30.0, DB)]
    excerpt = excerpt_of(lines)
    assert [(sample.at_s, sample.guests, sample.saved_kib) for sample in excerpt.samples] == [
        (10.0, 1, 2048),
        (20.0, 2, 2048),
        (30.0, 1, 2048),
    ]
    assert [(event.at_s, event.kind, event.domain) for event in excerpt.events] == [
        (20.0, "started", "db"),
        (30.0, "stopped", "web"),
    ]


def test_a_guest_that_was_started_anew_between_two_passes_has_stopped_and_started() -> None:
    excerpt = excerpt_of([make_pass(10.0, WEB), make_pass(20.0, replace(WEB, domain_id=7))])
    assert sorted(event.kind for event in excerpt.events) == ["started", "stopped"]


def test_a_recorded_trace_of_real_guests_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "twins.svg"
    assert main(["trace", "plot", str(TRACES / "twins.jsonl"), "-o", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "output": str(path), "samples": 92, "events": 8}
    assert "<!-- saved memory, MiB -->" in path.read_text()


def test_what_an_agent_remembered_is_drawn_after_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, folders = tmp_path / "x.svg", ["--runtime-dir", str(tmp_path / "run"), "--state-dir", str(tmp_path)]
    now_s = time.time()
    samples = [replace(SAMPLE, at_s=now_s - 600, saved_kib=3 << 20), replace(SAMPLE, at_s=now_s - 60)]
    event = GuestEvent(at_s=now_s - 300, kind="started", domain="drawn", uuid="1")
    HistoryFile(str(tmp_path / "local.history")).add(samples, [event], [])
    plot = ["trace", "plot", "--last", "1h", "--connect", "qemu:///system", "-o", str(path), "--json"]
    assert main([*folders, *plot]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "output": str(path), "samples": 2, "events": 1}
    assert "<!-- drawn -->" in path.read_text(), "the guest that has started"
    assert "<!-- saved memory, GiB -->" in path.read_text()
