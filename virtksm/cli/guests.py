"""`virtksm guests`: the running guests, KSM's savings on each, their cost, and why one cannot merge."""

from __future__ import annotations

import argparse

from virtksm.cli.survey import read_survey
from virtksm.errors import ExitCode, VirtksmError
from virtksm.text import format_kib, printable, width

TYPE_CHECKING = False  # importing typing costs a start 2 ms
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from virtksm.guests.process import OtherProcess
    from virtksm.guests.survey import SeenGuest, Survey

SCHEMA = 1
MAX_NAMED = 5
"""Of the other processes that have merged pages: the rest is one sum."""
HEADINGS = ("GUEST", "MEMORY", "MAXIMUM", "RSS", "MERGED", "UNMERGED", "SAVED", "COST", "PROFIT", "CAN MERGE")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.add_argument(
        "guests", metavar="GUEST", nargs="*", help="show this running guest, by its name or UUID (default: all)"
    )
    parser.add_argument(
        "--sort",
        choices=list(_ORDERS),
        default="saved",
        help="the most saved or memory first, or by name (%(default)s)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the guests; returns the exit code. Raises VirtksmError, also for a guest that does not run."""
    found, *_ = read_survey(options)
    guests = sorted(sorted(choose(found.guests, options.guests), key=_by_name), key=_ORDERS[options.sort])
    if options.json:
        from virtksm.json_output import to_json

        print(to_json(survey_dict(found, guests)))
    else:
        print("\n".join(survey_lines(found, guests)))
    return ExitCode.DONE


def choose(guests: Sequence[SeenGuest], wanted: Sequence[str]) -> list[SeenGuest]:
    """Return the guests whose name or UUID is wanted, all where none is; raises VirtksmError if one is missing."""
    known = {name for seen in guests for name in (seen.guest.name, seen.guest.uuid)}
    if missing := [name for name in wanted if name not in known]:
        raise VirtksmError(f"no running guest is called {printable(missing[0])}", remedy="`virtksm guests` shows all")
    return [seen for seen in guests if not wanted or {seen.guest.name, seen.guest.uuid} & {*wanted}]


def survey_dict(found: Survey, guests: Iterable[SeenGuest]) -> dict[str, object]:
    """Return JSON values (docs/reference.md)."""
    from virtksm.guests.savings import find_cost_bytes

    ksm, left = found.ksm, found.left_over
    return {
        "schema": SCHEMA,
        "uri": found.uri,
        "source": found.source.value,
        "guests": [_guest_dict(one) for one in guests],
        "host": {
            "ksm_run": ksm.run,
            "pages_shared": ksm.pages_shared,
            "pages_sharing": ksm.pages_sharing,
            "ksm_zero_pages": ksm.ksm_zero_pages,
            "page_bytes": ksm.page_kib * 1024,
            "saved_bytes": _bytes(ksm.saved_kib),
            "cost_bytes": find_cost_bytes(ksm, found.general_profit_bytes),
            "profit_bytes": found.general_profit_bytes,
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
        "notes": list(found.notes),
    }


def _guest_dict(seen: SeenGuest) -> dict[str, object]:
    account = seen.account
    ksm = None if seen.process is None else seen.process.ksm
    return {
        "name": seen.guest.name,
        "uuid": seen.guest.uuid,
        "memory_bytes": _bytes(seen.xml.current_kib),
        "maximum_bytes": _bytes(seen.max_kib),
        "rss_bytes": _bytes(seen.guest.rss_kib),
        "merged_bytes": None if account is None else account.merged_bytes,
        "unmerged_bytes": None if account is None else account.unmerged_bytes,
        "saved_bytes": None if account is None else account.saved_bytes,
        "cost_bytes": None if account is None else account.cost_bytes,
        "profit_bytes": None if account is None else account.profit_bytes,
        "can_merge": seen.can_merge,
        "obstacles": None if seen.obstacles is None else [one.value for one in seen.obstacles],
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


def survey_lines(found: Survey, guests: Iterable[SeenGuest]) -> list[str]:
    """Render the guests as a table, their sum, the host's own counters, what is left over, and the notes."""
    rows = [HEADINGS, *(_row(one) for one in guests)]
    widths = [max(width(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = []
    for name, *amounts, can_merge in rows:
        aligned = [amount.rjust(columns) for amount, columns in zip(amounts, widths[1:-1], strict=True)]
        lines.append("  ".join([name + " " * (widths[0] - width(name)), *aligned, can_merge]))
    if not found.guests:
        lines = ["no guest runs"]
    ksm, left = found.ksm, found.left_over
    profit = "unknown" if found.general_profit_bytes is None else _amount(found.general_profit_bytes)
    zero = "" if ksm.ksm_zero_pages is None else f", ksm_zero_pages {ksm.ksm_zero_pages}"
    lines += [
        "",
        f"host      {format_kib(ksm.saved_kib)} saved (pages_sharing {ksm.pages_sharing}, pages_shared "
        f"{ksm.pages_shared}{zero}), profit {profit}",
    ]
    if left is not None:
        lines += [
            f"guests    {_amount(found.of_guests_bytes)} of it saved on guests",
            f"other     {_amount(left.saved_bytes)}, {left.merging_pages} merging pages not of these guests",
            *(f"          {text}" for text in _left_texts(left.merging_pages, found.other_processes)),
        ]
    return [printable(line) for line in lines + [f"note      {note}" for note in found.notes]]


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


def _row(seen: SeenGuest) -> tuple[str, ...]:
    account = seen.account
    amounts: list[int | None] = [_bytes(seen.xml.current_kib), _bytes(seen.max_kib), _bytes(seen.guest.rss_kib)]
    if account is None:
        amounts += [None] * 5
    else:
        amounts += [account.merged_bytes, account.unmerged_bytes, account.saved_bytes, account.cost_bytes]
        amounts.append(account.profit_bytes)
    return (printable(seen.guest.name), *("-" if one is None else _amount(one) for one in amounts), _merge_text(seen))


def _merge_text(seen: SeenGuest) -> str:
    if seen.obstacles is None:
        return "unknown"
    if seen.can_merge:
        return "yes"
    return f"no: {', '.join(one.text for one in seen.obstacles)}"


def _amount(count_bytes: int) -> str:
    return format_kib(count_bytes / 1024)


def _bytes(kib: int | None) -> int | None:
    return None if kib is None else kib * 1024


def _by_name(seen: SeenGuest) -> str:
    return seen.guest.name


def _by_saved(seen: SeenGuest) -> int:
    return 1 if seen.account is None else -seen.account.saved_bytes


def _by_memory(seen: SeenGuest) -> int:
    return 1 if seen.xml.current_kib is None else -seen.xml.current_kib


_ORDERS: dict[str, Callable[[SeenGuest], int | str]] = {"saved": _by_saved, "memory": _by_memory, "name": _by_name}
