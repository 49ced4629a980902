"""`virtksm guests`: the running guests, KSM's savings on each, their cost, and why one cannot merge."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Sequence

from virtksm.cli.layout import Item, Table, print_result
from virtksm.cli.survey import read_survey, surveyor
from virtksm.cli.timespan import add_watch_option
from virtksm.errors import VirtksmError
from virtksm.guests.obstacles import pool_text
from virtksm.guests.process import OtherProcess
from virtksm.guests.savings import find_cost_bytes, find_profit_bytes
from virtksm.guests.survey import SeenGuest, Survey
from virtksm.text import format_kib, printable, to_bytes

MAX_NAMED = 5
"""Of the other processes that have merged pages: the rest is one sum."""
USUAL = ("name", "memory", "rss", "saved", "profit", "can_merge")
TEXTS = ("name", "group", "can_merge")
"""The columns that may wrap."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "guests", metavar="GUEST", nargs="*", help="show this running guest, by its name or UUID (default: all)"
    )
    parser.add_argument(
        "--sort",
        choices=list(_ORDERS),
        default="saved",
        help="the most saved or memory first, or by name (%(default)s)",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="COLUMNS",
        type=_columns,
        help=f"show these columns, in this order: all, or some of {', '.join(COLUMNS)} (default: {','.join(USUAL)})",
    )
    parser.add_argument("--no-header", action="store_true", help="print the rows of the guests alone, for scripts")
    add_watch_option(parser)


def _columns(text: str) -> tuple[str, ...]:
    names = tuple(COLUMNS) if text == "all" else tuple(text.split(","))
    if unknown := [name for name in names if name not in COLUMNS]:
        raise argparse.ArgumentTypeError(f"there is no column {unknown[0]!r:.40}, only {', '.join(COLUMNS)}")
    return names


def run(options: argparse.Namespace) -> int | None:
    """Print the guests; returns the exit code of --watch. Raises VirtksmError, also for a guest that does not run."""
    _, survey = surveyor(options, read_survey)

    def read() -> tuple[dict[str, object], list[Item]]:
        found = survey()
        guests = sorted(choose(found.guests, options.guests), key=_ORDERS["name"])
        guests.sort(key=_ORDERS[options.sort])
        items = survey_items(found, guests, columns=options.output or USUAL, has_header=not options.no_header)
        return survey_dict(found, guests), items

    if options.watch is not None:
        from virtksm.cli.terminal import watch

        return watch(options, "virtksm guests", read)
    gc.disable()  # a process of a tenth of a second has no garbage worth the time
    print_result(options, *read())
    return None


def choose(guests: Sequence[SeenGuest], wanted: Sequence[str]) -> list[SeenGuest]:
    """Return the guests whose name or UUID is wanted, all where none is; raises VirtksmError if one is missing."""
    known = {name for seen in guests for name in (seen.guest.name, seen.guest.uuid)}
    if missing := [name for name in wanted if name not in known]:
        raise VirtksmError(f"no running guest is called {printable(missing[0])}", remedy="virtksm guests")
    return [seen for seen in guests if not wanted or {seen.guest.name, seen.guest.uuid} & {*wanted}]


def survey_dict(found: Survey, guests: Sequence[SeenGuest]) -> dict[str, object]:
    ksm, left = found.ksm, found.left_over
    return {
        "uri": found.uri,
        "source": found.source.value,
        "guests": [_guest_dict(one) for one in guests],
        "host": {
            "ksm_run": ksm.run,
            "pages_shared": ksm.pages_shared,
            "pages_sharing": ksm.pages_sharing,
            "ksm_zero_pages": ksm.ksm_zero_pages,
            "freed_bytes": to_bytes(ksm.freed_kib),
            "page_bytes": ksm.page_kib * 1024,
            "places_per_page": None if ksm.places_per_page is None else round(ksm.places_per_page, 2),
            "max_page_sharing": found.max_page_sharing,
            "saved_bytes": to_bytes(ksm.saved_kib),
            "cost_bytes": find_cost_bytes(ksm, found.general_profit_bytes),
            "profit_bytes": find_profit_bytes(ksm, found.general_profit_bytes),
        },
        "left_over": None
        if left is None
        else {
            "merging_kib": ksm.kib(left.merging_pages),
            "zero_kib": None if left.zero_pages is None else ksm.kib(left.zero_pages),
            "saved_bytes": left.saved_bytes,
            "cost_bytes": left.cost_bytes,
            "processes": [
                {"pid": one.pid, "name": one.name, "merging_kib": ksm.kib(one.merging_pages)}
                for one in found.other_processes
            ],
        },
        "mixed_groups": [list(pool) for pool in found.mixed_pools],
        "notes": list(found.notes),
    }


def _guest_dict(seen: SeenGuest) -> dict[str, object]:
    ksm = seen.ksm
    return {
        "name": seen.guest.name,
        "uuid": seen.guest.uuid,
        "group": seen.xml.group,
        **{f"{name}_bytes": find_bytes(seen) for name, find_bytes in AMOUNTS.items()},
        "can_merge": seen.can_merge,
        "obstacles": None if seen.obstacles is None else [one.value for one in seen.obstacles],
        "can_merge_text": _merge_text(seen),
        "kernel": None
        if ksm is None
        else {
            "ksm_rmap_items": ksm.rmap_items,
            "ksm_zero_pages": ksm.zero_pages,
            "ksm_merging_pages": ksm.merging_pages,
            "ksm_process_profit": ksm.profit_bytes,
            "ksm_merge_any": ksm.merges_any,
            "ksm_mergeable": ksm.is_mergeable,
        },
    }


def survey_items(
    found: Survey, guests: Sequence[SeenGuest], *, columns: Sequence[str] = USUAL, has_header: bool = True
) -> list[Item]:
    """Return the guests as a table, their sum, the host's own counters, what is left over, and the notes."""
    headings = [name.upper().replace("_", " ") for name in columns]
    rows = [[COLUMNS[name](seen) for name in columns] for seen in guests]
    texts = [number for number, name in enumerate(columns) if name in TEXTS]
    if not has_header:
        return [Table(rows, texts, has_headings=False)] if rows else []
    table: list[Item] = [Table([headings, *rows], texts)] if rows else [("", "no guest runs", "")]
    ksm, left = found.ksm, found.left_over
    profit_bytes = find_profit_bytes(ksm, found.general_profit_bytes)
    profit = "unknown" if profit_bytes is None else _amount(profit_bytes)
    zero = "" if ksm.ksm_zero_pages is None else f", ksm_zero_pages {ksm.ksm_zero_pages}"
    freed = "" if ksm.freed_kib is None else f"; {format_kib(ksm.freed_kib)} of it given back by split huge pages"
    items: list[Item] = [
        *table,
        ("", "", ""),
        (
            "",
            "Host",
            f"{format_kib(ksm.saved_kib)} saved (pages_sharing {ksm.pages_sharing}, pages_shared "
            f"{ksm.pages_shared}{zero}{freed}), profit {profit}",
        ),
    ]
    if left is not None:
        items.append(("", "Guests", f"{_amount(found.of_guests_bytes)} of it saved on guests"))
        others = f"{_amount(left.saved_bytes)} ({left.merging_pages} merging pages) not from these guests"
        items.append(("", "Other", others))
        items += [("", "", text) for text in _left_texts(left.merging_pages, found.other_processes)]
    if ksm.places_per_page is not None:
        most = "" if found.max_page_sharing is None else f", {found.max_page_sharing} at most"
        items.append(
            ("", "Risk", f"a merged page serves {ksm.places_per_page:.1f} places{most}: a memory error hits them all")
        )
    items += [("warn", "Groups", f"can merge with one another: {pool_text(pool)}") for pool in found.mixed_pools]
    return items + [("", "Note", note) for note in found.notes]


def _left_texts(merging_pages: int, processes: Sequence[OtherProcess]) -> list[str]:
    if merging_pages < 0:
        return ["the counters changed while they were read"]
    texts = [f"{one.merging_pages} of {one.name} (pid {one.pid})" for one in processes[:MAX_NAMED]]
    if rest := processes[MAX_NAMED:]:
        texts.append(f"{sum(one.merging_pages for one in rest)} of {len(rest)} more processes")
    unknown = merging_pages - sum(one.merging_pages for one in processes)
    if unknown > 0:
        texts.append(f"{unknown} of processes that have exited since the last full scan, or that may not be read")
    return texts


def _merge_text(seen: SeenGuest) -> str:
    if seen.obstacles is None:
        return "unknown"
    if seen.can_merge:
        return "yes"
    return f"no: {', '.join(one.text for one in seen.obstacles)}"


def _amount_of(find_bytes: Callable[[SeenGuest], int | None]) -> Callable[[SeenGuest], str]:
    return lambda seen: "-" if (count_bytes := find_bytes(seen)) is None else _amount(count_bytes)


def _accounted(name: str) -> Callable[[SeenGuest], int | None]:
    return lambda seen: getattr(seen.account, f"{name}_bytes", None)


AMOUNTS: dict[str, Callable[[SeenGuest], int | None]] = {
    "memory": lambda seen: to_bytes(seen.xml.current_kib),
    "maximum": lambda seen: to_bytes(seen.max_kib),
    "limit": lambda seen: to_bytes(seen.xml.limit_kib),
    "rss": lambda seen: to_bytes(seen.guest.rss_kib),
    "mergeable": lambda seen: to_bytes(seen.guest.mergeable_kib),
    "swapped": lambda seen: to_bytes(seen.swapped_kib),
    **{name: _accounted(name) for name in ("merged", "unmerged", "freed", "saved", "cost", "profit")},
}
"""A guest's amounts of memory in bytes, None where they are unknown."""
COLUMNS: dict[str, Callable[[SeenGuest], str]] = {
    "name": lambda seen: seen.guest.name,
    "uuid": lambda seen: seen.guest.uuid,
    "group": lambda seen: seen.xml.group or "-",
    **{name: _amount_of(find_bytes) for name, find_bytes in AMOUNTS.items()},
    "can_merge": _merge_text,
}
"""What each column of the table shows of a guest."""


def _amount(count_bytes: int) -> str:
    return format_kib(count_bytes / 1024)


def _largest_first(name: str) -> Callable[[SeenGuest], int]:
    return lambda seen: 1 if (count_bytes := AMOUNTS[name](seen)) is None else -count_bytes


_ORDERS: dict[str, Callable[[SeenGuest], int | str]] = {
    "saved": _largest_first("saved"),
    "memory": _largest_first("memory"),
    "name": lambda seen: seen.guest.name,
}
