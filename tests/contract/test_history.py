"""The port History: the fake and the file keep the same memories, forget the same ones, and fail in the same way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
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
    Told,
)
from virtksm.model.decision import EVALUATING_ONLY
from virtksm.store.history import HistoryFile

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
)
EVENT = GuestEvent(at_s=NOW_S, kind="started", domain="vm ü\n", uuid="1-2-3", detail="booted")
DECISION = Told(at_s=NOW_S, report={"schema": 1, "decision": {"rule": "ü", "numbers": {"a": None, "b": 0.5}}})


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A history, the same one as another process sees it, and how to make writing fail."""

    history: History
    reopen: Callable[[], History]
    fill: Callable[[], object]


@pytest.fixture(params=["fake", "file"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Kept:
    if request.param == "fake":
        fake = FakeHistory()
        return Kept(history=fake, reopen=lambda: fake, fill=lambda: setattr(fake, "is_full", True))
    path = tmp_path / "lib" / "local.history"
    return Kept(
        history=HistoryFile(str(path)),
        reopen=lambda: HistoryFile(str(path)),
        # What the journal would be called is a folder: writing fails as on a full disk, for root too.
        fill=lambda: Path(f"{path}-journal").mkdir(),
    )


def test_at_first_there_is_nothing(kept: Kept) -> None:
    for history in (kept.history, kept.reopen()):
        assert (history.samples(0), history.events(0), history.decisions(100)) == ((), (), ())
    assert kept.history.keep([], [], []) is None
    assert (kept.history.samples(0), kept.history.events(0), kept.history.decisions(100)) == ((), (), ())


def test_what_is_kept_is_there_for_other_processes_the_oldest_first(kept: Kept) -> None:
    later = replace(SAMPLE, at_s=NOW_S + 10, ksmd_cpu_seconds=None, saved_kib=None)
    assert kept.history.keep([SAMPLE], [EVENT], []) is None
    assert kept.reopen().keep([later], [replace(EVENT, at_s=NOW_S + 20, detail="")], [DECISION]) is None
    for history in (kept.history, kept.reopen()):
        assert history.samples(0) == (SAMPLE, later)
        assert history.samples(NOW_S + 10) == (later,)
        assert history.events(0) == (EVENT, replace(EVENT, at_s=NOW_S + 20, detail=""))
        assert history.events(NOW_S + 20.5) == ()
        assert history.events(0, 1) == history.events(NOW_S + 1)
        assert history.decisions(5) == (DECISION,)


def test_what_is_too_many_is_forgotten_the_first_that_came(kept: Kept) -> None:
    kept.history.keep([SAMPLE], [], [])
    many = [replace(SAMPLE, at_s=NOW_S + number) for number in range(MAX_SAMPLES + 5)]
    events = [replace(EVENT, at_s=NOW_S + number, kind="poke") for number in range(MAX_EVENTS + 5)]
    decisions = [Told(at_s=NOW_S + number, report={}) for number in range(MAX_DECISIONS + 5)]
    kept.history.keep(many, events, decisions)
    assert kept.history.samples(0) == tuple(many[5:])
    assert kept.history.events(0) == tuple(events[5:])
    assert kept.history.decisions(MAX_DECISIONS * 2) == tuple(decisions[5:])
    assert kept.history.decisions(2) == tuple(decisions[-2:])


@pytest.mark.parametrize("batch", [50, 10_000])
@pytest.mark.parametrize("kind", MAX_OF_A_KIND)
def test_the_events_of_one_guest_push_out_its_own_alone(kept: Kept, kind: str, batch: int) -> None:
    most, most_of_a_guest = MAX_OF_A_KIND[kind]
    others = [replace(EVENT, at_s=NOW_S, kind=one, uuid="other") for one in MAX_OF_A_KIND]
    kept.history.keep([], others, [])
    loud = [replace(EVENT, at_s=NOW_S + number, kind=kind, uuid="loud") for number in range(1, most_of_a_guest + 30)]
    for first in range(0, len(loud), batch):
        kept.history.keep([], loud[first : first + batch], [])
    assert kept.history.events(0) == (*others, *loud[-most_of_a_guest:])
    crowd = [replace(EVENT, at_s=NOW_S + 9_999, kind=kind, uuid=str(number)) for number in range(most + 10)]
    kept.history.keep([], crowd, [])
    others_of_another_kind = tuple(one for one in others if one.kind != kind)
    assert kept.history.events(0) == (*others_of_another_kind, *crowd[10:])


def test_the_bounds_of_each_kind_are_within_that_of_all_and_an_answer_has_room_for_starts() -> None:
    assert sum(most for most, _ in MAX_OF_A_KIND.values()) <= MAX_EVENTS
    assert sum(MAX_OF_A_KIND[trigger.value][0] for trigger in EVALUATING_ONLY) <= MAX_ANSWERED_EVENTS // 2


def test_a_clock_that_is_set_forgets_nothing(kept: Kept) -> None:
    told = [replace(SAMPLE, at_s=NOW_S + days * KEEP_S) for days in (0, 365, -365, 0.001)]
    for one in told:
        kept.history.keep([one], [], [])
    assert kept.history.samples(-1e12) == tuple(told), "in the order of their coming"
    assert kept.history.samples(NOW_S) == (told[0], told[1], told[3])


def test_a_write_that_fails_says_so_and_keeps_what_was_there(kept: Kept) -> None:
    kept.history.keep([SAMPLE], [EVENT], [DECISION])
    before = kept.history.samples(0), kept.history.events(0), kept.history.decisions(5)
    kept.fill()
    with pytest.raises(StateUnusable):
        kept.history.keep([replace(SAMPLE, at_s=NOW_S + 10)], [EVENT], [DECISION])
    if isinstance(kept.history, HistoryFile):
        Path(f"{kept.history.path}-journal").rmdir()
    assert (kept.history.samples(0), kept.history.events(0), kept.history.decisions(5)) == before
