"""What the agent remembers of a host for people: samples, guests' events and decisions. Plain values, no I/O.

Three kinds, each bounded: samples at most every `SAMPLE_S` for a day, to draw curves of; events of guests; and
decisions that were no routine, each with the record of its pass. Times are Unix time (UTC, seconds), since people look
at them; whoever takes differences minds that clocks are set. Counters since boot start anew with the host: a smaller
one than before is a reboot. What the kernel or the connection does not offer is None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

SAMPLE_S = 10.0
"""The least time between two samples; passes that follow each other faster share one."""
KEEP_S = 86_400.0
"""How long samples are kept."""
MOST_SAMPLES = int(KEEP_S / SAMPLE_S)
MOST_EVENTS = 5_000
MOST_DECISIONS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The host as one pass left it. `saved_kib` counts pages_sharing and ksm_zero_pages; `rule` is the policy's."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestEvent:
    """Something that libvirt told of a guest; `kind` is the trigger's name (`started`, `stopped`, ...)."""

    at_s: float
    kind: str
    domain: str
    uuid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A decision that was no routine; `record` is its pass's `PassRecord.as_dict()`."""

    at_s: float
    record: Mapping[str, object]


class History(Protocol):
    """Where memories are kept: bounded, in the state folder, outliving the agent and the host's reboot.

    Every method blocks on the disk and raises StateUnusable. Reading gives the oldest first.
    """

    def keep(self, samples: Sequence[Sample], events: Sequence[GuestEvent], decisions: Sequence[Told]) -> None:
        """Add memories, all of them or none, and forget what is too old or too many."""

    def samples(self, since_s: float) -> tuple[Sample, ...]:
        """Return the samples from `since_s` on."""

    def events(self, since_s: float, most: int = MOST_EVENTS) -> tuple[GuestEvent, ...]:
        """Return the last `most` events from `since_s` on."""

    def decisions(self, most: int) -> tuple[Told, ...]:
        """Return the last `most` decisions."""
