"""The port History: the fake and the file keep the same and fail in the same way; the file drops the oldest."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes import FakeHistory
from virtksm.agent.requests import MAX_ANSWERED_EVENTS
from virtksm.errors import StateUnusable
from virtksm.history.samples import (
    KEEP_S,
    MAX_DECISIONS,
    MAX_EVENTS,
    MAX_OF_A_KIND,
    MAX_SAMPLES,
    GuestEvent,
    History,
    Sample,
)
from virtksm.model.decision import EVALUATING_ONLY, Trigger
from virtksm.store.history import HistoryFile
from virtksm.values import replace

NOW_S = 1_800_000_000.25
SAMPLE = Sample(
    at_s=NOW_S,
    guests=3,
    committed_kib=700_000,
    total_kib=16_000_000,
    available_kib=None,
    saved_kib=123_456,
    ksmd_cpu_seconds=1.25,
    run=None,
    pages_to_scan=285_714,
    sleep_millisecs=60_000,
    rule="sweep",
    zero_kib=3_456,
    freed_kib=20_000,
)
EVENT = GuestEvent(at_s=NOW_S, kind="started", domain="vm ü\n", uuid="1-2-3", detail="booted")
DECISION = '{"kind": "pass", "decision": {"rule": "\\u00fc"}}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A history, the same one as another process sees it, and how to make writing fail."""

    history: History
    reopen: Callable[[], History]
    fill: Callable[[], object]


@pytest.fixture(params=["fake", "file"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    if request.param == "fake":
        fake = FakeHistory()
        return Case(history=fake, reopen=lambda: fake, fill=lambda: setattr(fake, "is_full", True))
    path = tmp_path / "lib" / "local.history"
    return Case(
        history=HistoryFile(str(path)),
        reopen=lambda: HistoryFile(str(path)),
        # What the journal would be called is a folder: writing fails as on a full disk, for root too.
        fill=lambda: Path(f"{path}-journal").mkdir(),
    )


def test_what_is_added_is_there_for_other_processes_the_oldest_first(case: Case) -> None:
    for history in (case.history, case.reopen()):
        assert (history.samples(0), history.events(0), history.decisions(100)) == ((), (), ())
    assert case.history.add([], [], []) is None
    later = replace(SAMPLE, at_s=NOW_S + 10, ksmd_cpu_seconds=None, saved_kib=None, zero_kib=None, freed_kib=None)
    assert case.history.add([SAMPLE], [EVENT], []) is None
    assert case.reopen().add([later], [replace(EVENT, at_s=NOW_S + 20, detail="")], [DECISION]) is None
    for history in (case.history, case.reopen()):
        assert (history.samples(0), history.samples(NOW_S + 10)) == ((SAMPLE, later), (later,))
        assert history.events(0) == (EVENT, replace(EVENT, at_s=NOW_S + 20, detail=""))
        assert (history.events(NOW_S + 20.5), history.events(0, 1)) == ((), history.events(NOW_S + 1))
        assert history.decisions(5) == (DECISION,)


@pytest.fixture
def file(tmp_path: Path) -> HistoryFile:
    return HistoryFile(str(tmp_path / "lib" / "local.history"))


def test_of_too_many_the_oldest_are_dropped(file: HistoryFile) -> None:
    file.add([SAMPLE], [], [])
    many = [replace(SAMPLE, at_s=NOW_S + number) for number in range(MAX_SAMPLES + 5)]
    events = [replace(EVENT, at_s=NOW_S + number, kind="poke") for number in range(MAX_EVENTS + 5)]
    decisions = [str(number) for number in range(MAX_DECISIONS + 5)]
    file.add(many, events, decisions)
    assert file.samples(0) == tuple(many[5:])
    assert file.events(0) == tuple(events[5:])
    assert file.decisions(MAX_DECISIONS * 2) == tuple(decisions[5:])
    assert file.decisions(2) == tuple(decisions[-2:])


@pytest.mark.parametrize("batch", [50, 10_000])
@pytest.mark.parametrize("kind", MAX_OF_A_KIND)
def test_the_events_of_one_guest_push_out_its_own_alone(file: HistoryFile, kind: str, batch: int) -> None:
    most, most_of_a_guest = MAX_OF_A_KIND[kind]
    others = [replace(EVENT, at_s=NOW_S, kind=one, uuid="other") for one in MAX_OF_A_KIND]
    file.add([], others, [])
    loud = [replace(EVENT, at_s=NOW_S + number, kind=kind, uuid="loud") for number in range(1, most_of_a_guest + 30)]
    for first in range(0, len(loud), batch):
        file.add([], loud[first : first + batch], [])
    assert file.events(0) == (*others, *loud[-most_of_a_guest:])
    crowd = [replace(EVENT, at_s=NOW_S + 9_999, kind=kind, uuid=str(number)) for number in range(most + 10)]
    file.add([], crowd, [])
    others_of_another_kind = tuple(one for one in others if one.kind != kind)
    assert file.events(0) == (*others_of_another_kind, *crowd[10:])


def test_the_bounds_of_each_kind_are_within_that_of_all_and_an_answer_has_room_for_starts() -> None:
    assert sum(most for most, _ in MAX_OF_A_KIND.values()) <= MAX_EVENTS
    events = EVALUATING_ONLY - {Trigger.GUESTS}
    assert sum(MAX_OF_A_KIND[trigger.value][0] for trigger in events) <= MAX_ANSWERED_EVENTS // 2


def test_a_clock_that_is_set_forgets_nothing(case: Case) -> None:
    samples = [replace(SAMPLE, at_s=NOW_S + days * KEEP_S) for days in (0, 365, -365, 0.001)]
    for one in samples:
        case.history.add([one], [], [])
    assert case.history.samples(-1e12) == tuple(samples), "in the order in which they were added"
    assert case.history.samples(NOW_S) == (samples[0], samples[1], samples[3])


def test_a_write_that_fails_says_so_and_keeps_what_was_there(case: Case) -> None:
    case.history.add([SAMPLE], [EVENT], [DECISION])
    before = case.history.samples(0), case.history.events(0), case.history.decisions(5)
    case.fill()
    with pytest.raises(StateUnusable):
        case.history.add([replace(SAMPLE, at_s=NOW_S + 10)], [EVENT], [DECISION])
    if isinstance(case.history, HistoryFile):
        Path(f"{case.history.path}-journal").rmdir()
    assert (case.history.samples(0), case.history.events(0), case.history.decisions(5)) == before
