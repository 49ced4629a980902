"""The history of a host, for people: samples, guests' events and decisions. Plain values, no I/O.

Three kinds, each bounded: at most one sample every `SAMPLE_S`, for a day, to draw curves of; events of guests, so many
of each kind and of each guest, so that no guest pushes out the events of others; and decisions that were news, each as
the summary of its pass, a line of a trace (virtksm/trace). Times are Unix time (UTC, seconds), since people look at
them; a clock may be set between two of them. Counters since boot start anew with the host: a smaller one than before is
a reboot. A counter that the kernel or the connection does not offer is None.

Samples and events travel as tables, a list of columns and a list of rows (`as_table`, `parse_samples`,
`parse_events`): that is the compact form of the agent's answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

from virtksm.model.decision import EVALUATING_ONLY, Trigger
from virtksm.model.snapshot import Settings, Snapshot
from virtksm.text import MAX_TIME_S
from virtksm.values import build

SAMPLE_S = 10.0
"""Passes that follow each other faster share one sample, that of the last of them."""
KEEP_S = 86_400.0
"""How long a sample is kept at least."""
MAX_SAMPLES = int(KEEP_S / SAMPLE_S)
MAX_EVENTS = 5_000
UNMERGED, MERGING = "unmerged", "merging"
"""The kinds of events that are no trigger: a guest was unmerged while it runs, or may merge again."""
MAX_OF_A_KIND: Mapping[str, tuple[int, int]] = {
    Trigger.STARTED.value: (2_000, 200),
    Trigger.STOPPED.value: (2_000, 200),
    Trigger.BALLOON.value: (200, 50),
    Trigger.MEMORY_DEVICE.value: (200, 50),
    Trigger.METADATA.value: (100, 50),
    UNMERGED: (250, 50),
    MERGING: (250, 50),
}
"""How many events of a kind are kept: of all guests, and of one. An answer of 1,000 always has room for starts."""
MAX_DECISIONS = 1_000
MAX_POINTS = 1_000
"""How many samples an answer has at most."""
MAX_REAL = 1e18
KINDS = frozenset((*(trigger.value for trigger in Trigger), UNMERGED, MERGING))


class Sample(NamedTuple):
    """The host as one pass left it. `saved_kib` is KsmState's, as are `zero_kib` and `freed_kib`, the parts of it that
    are no shared pages. `rule` is the policy's.
    """

    at_s: float
    guests: int
    committed_kib: int
    total_kib: int
    available_kib: int | None
    saved_kib: int | None
    ksmd_cpu_seconds: float | None
    run: int | None
    pages_to_scan: int | None
    sleep_millisecs: int | None
    rule: str
    zero_kib: int | None
    freed_kib: int | None


class GuestEvent(NamedTuple):
    """An event of a guest; `kind` is its trigger's name (`started`, `stopped`, ...), UNMERGED or MERGING.

    `detail` is how, in words (`booted`, `crashed`, `balloon 65536 KiB`).
    """

    at_s: float
    kind: str
    domain: str
    uuid: str
    detail: str = ""


def replaces(event: GuestEvent) -> tuple[str, str] | GuestEvent:
    """Return a key: an event stands for the earlier ones of the same key, which need not be kept any more.

    Of the events that a guest makes by itself, as often as it likes, only the last in a while is worth keeping.
    """
    is_chatter = any(event.kind == trigger.value for trigger in EVALUATING_ONLY)
    return (event.uuid, event.kind) if is_chatter else event


class History(Protocol):
    """Keeps a host's history: bounded, in the state folder, outliving the agent and the host's reboot.

    Every method blocks on the disk and raises StateUnusable. Reading gives the oldest first, and nothing where nothing
    was ever added.
    """

    def add(self, samples: Sequence[Sample], events: Sequence[GuestEvent], decisions: Sequence[str]) -> str | None:
        """Add all of them or none, and drop the oldest of too many.

        A file that is damaged or of another schema is set aside first; returns where, else None.
        """

    def samples(self, since_s: float) -> tuple[Sample, ...]:
        """Return the samples from `since_s` on."""

    def events(self, since_s: float, limit: int = MAX_EVENTS) -> tuple[GuestEvent, ...]:
        """Return the last `limit` events from `since_s` on."""

    def decisions(self, limit: int) -> tuple[str, ...]:
        """Return the lines of the last `limit` decisions."""


Entry = TypeVar("Entry", Sample, GuestEvent)
SAMPLE_FIELDS = Sample._fields
EVENT_FIELDS = GuestEvent._fields


def sample_of(at_s: float, snapshot: Snapshot, after: Settings, rule: str) -> Sample:
    """Return the host as a pass left it, at Unix time `at_s`, with the settings `after` it."""
    return Sample(
        at_s=at_s,
        guests=len(snapshot.guests),
        committed_kib=snapshot.committed_kib,
        total_kib=snapshot.host.total_kib,
        available_kib=snapshot.host.spare_kib,
        saved_kib=snapshot.ksm.saved_kib,
        ksmd_cpu_seconds=snapshot.ksm.ksmd_cpu_seconds,
        run=snapshot.ksm.run,
        pages_to_scan=after.pages_to_scan,
        sleep_millisecs=after.sleep_millisecs,
        rule=rule,
        zero_kib=snapshot.ksm.zero_kib,
        freed_kib=snapshot.ksm.freed_kib,
    )


def thin(samples: Sequence[Sample], limit: int, *, until_s: float) -> tuple[Sample, ...]:
    """Return at most `limit` samples (1 or more): the last of each of so many equal stretches of time.

    Those after `until_s`, which is now, are left out: they are from before the clock was set back.
    """
    samples = [sample for sample in samples if sample.at_s <= until_s]
    if len(samples) <= limit:
        return tuple(samples)
    first_s = min(sample.at_s for sample in samples)
    stretch_s = (max(sample.at_s for sample in samples) - first_s) / limit or 1.0
    stretches = {min(int((sample.at_s - first_s) / stretch_s), limit - 1): sample for sample in samples}
    return tuple(stretches[number] for number in sorted(stretches))


def as_table(samples: Sequence[Sample], events: Sequence[GuestEvent]) -> dict[str, object]:
    """Return samples and events as JSON values, in their compact form."""
    return {
        "samples": {"columns": list(SAMPLE_FIELDS), "rows": [list(one) for one in samples]},
        "events": {"columns": list(EVENT_FIELDS), "rows": [list(one) for one in events]},
    }


def parse_samples(columns: object, rows: object) -> tuple[Sample, ...]:
    """Take samples from a table; raises ValueError saying what is wrong.

    Its further columns are left out, as another version may have made it.
    """
    return _parse(Sample, columns, rows)


def parse_events(columns: object, rows: object) -> tuple[GuestEvent, ...]:
    """Take events, as `parse_samples`."""
    events = _parse(GuestEvent, columns, rows)
    if not all(event.kind in KINDS for event in events):  # few words, as a picture's legend has them all
        raise ValueError("kind is no event's")
    return events


def _parse(made: type[Entry], columns: object, rows: object) -> tuple[Entry, ...]:
    if not isinstance(columns, list | tuple) or not all(isinstance(name, str) for name in columns):
        raise ValueError("columns are missing")
    if not isinstance(rows, list | tuple):
        raise ValueError("rows are missing")
    if not all(isinstance(row, list | tuple) and len(row) == len(columns) for row in rows):
        raise ValueError("a row has not as many values as there are columns")
    found = tuple(build(made, dict(zip(columns, row, strict=True))) for row in rows)
    if not all(0 <= one.at_s <= MAX_TIME_S for one in found):
        raise ValueError("at_s is no time")
    return found
