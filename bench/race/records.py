"""What one run of the race leaves behind: its samples, its guests' times, its neighbour's times, as one JSON file.

In and out: a `Record` and its file, compressed, since all are kept in the repository with the report that is made of
them. All times are seconds since the first guest's start. Counters are the kernel's own, as read: their differences
count, as they run on from run to run. A counter that the kernel lacks is None.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

SCHEMA = 2


class RecordUnreadable(Exception):
    """A file in the output folder is no report of a run, or of another version of this benchmark."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The kernel's KSM at one moment; names as in /sys/kernel/mm/ksm, `cow_ksm` as in /proc/vmstat.

    `ksmd_cpu_s` is ksmd's CPU time since the machine's boot. `cow_ksm` counts merged pages that were written to.
    """

    at_s: float
    pages_sharing: int
    pages_shared: int
    full_scans: int
    pages_scanned: int | None
    pages_skipped: int | None
    cow_ksm: int | None
    ksmd_cpu_s: float
    run: int
    pages_to_scan: int
    sleep_millisecs: int

    @property
    def is_idle(self) -> bool:
        """Tell whether ksmd scans nothing."""
        return self.run != 1 or self.pages_to_scan == 0


@dataclass(slots=True, kw_only=True)
class GuestLife:
    """When a guest's start returned, its memory was filled, its stop returned; None: not in this run."""

    name: str
    started_s: float
    settled_s: float | None = None
    stopped_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One contender's run over one work. `decisions` are an agent's, in order, as its log tells them.

    `revision` is the checkout's commit, with `-dirty` where it was changed. `neighbour` are pairs of the time and the
    ms that the neighbour's piece of work took then. `own_cpu_s` is the CPU time of the contender's own processes, None
    where it has none.
    """

    work: str
    told: str
    contender: str
    quick: bool
    length_s: float
    busy_until_s: float
    savings_until_s: float
    expected_sharing_pages: int
    began_utc: str
    revision: str
    machine: Mapping[str, object]
    guests: Sequence[GuestLife]
    samples: Sequence[Sample]
    neighbour: Sequence[tuple[float, float]]
    own_cpu_s: float | None = None
    decisions: Sequence[Mapping[str, Any]] = field(default_factory=tuple)

    @property
    def last_settled_s(self) -> float:
        """Tell when the last guest had filled its memory; the run's end, if one never did."""
        return max((self.length_s if guest.settled_s is None else guest.settled_s) for guest in self.guests)


def dump_record(report: Record) -> str:
    """Write a report as JSON: samples as rows below their columns' names, since there are many."""
    columns = [one.name for one in fields(Sample)]
    kept = {
        "schema": SCHEMA,
        **{one.name: getattr(report, one.name) for one in fields(Record)},
        "guests": [asdict(guest) for guest in report.guests],
        "columns": columns,
        "samples": [[getattr(sample, name) for name in columns] for sample in report.samples],
    }
    return json.dumps(kept, default=list) + "\n"


def parse_record(text: str) -> Record:
    """Read a report back; raises RecordUnreadable."""
    try:
        kept = json.loads(text)
        if kept.pop("schema") != SCHEMA:
            raise RecordUnreadable(f"its schema is not {SCHEMA}")
        columns = kept.pop("columns")
        kept["samples"] = [Sample(**dict(zip(columns, row, strict=True))) for row in kept["samples"]]
        kept["guests"] = [GuestLife(**guest) for guest in kept["guests"]]
        kept["neighbour"] = [(at_s, ms) for at_s, ms in kept["neighbour"]]
        return Record(**kept)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RecordUnreadable(f"it is no report of a run: {error}") from error


def record_path(folder: Path, work: str, contender: str) -> Path:
    """Tell where a run's report is kept."""
    return folder / f"{work}-{contender}.json.gz"


def keep_record(folder: Path, report: Record) -> None:
    """Write a report to its file; the same report makes the same bytes."""
    packed = gzip.compress(dump_record(report).encode(), mtime=0)
    record_path(folder, report.work, report.contender).write_bytes(packed)


def read_records(folder: Path) -> list[Record]:
    """Read all records of a folder; raises RecordUnreadable, also when quick runs lie beside full ones."""
    records = []
    for path in sorted(folder.glob("*-*.json.gz")):
        try:
            records.append(parse_record(gzip.decompress(path.read_bytes()).decode()))
        except (RecordUnreadable, EOFError, OSError, UnicodeDecodeError, zlib.error) as error:
            raise RecordUnreadable(f"{path}: {error}; remove it or choose another --output") from error
    if len({report.quick for report in records}) > 1:
        raise RecordUnreadable(f"{folder} holds quick and full runs: choose another --output for one of them")
    return records
