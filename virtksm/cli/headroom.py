"""`virtksm headroom`: how much more guest memory the host can take, and what is needed if everything unmerges."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Iterator, Sequence

from virtksm.cli.layout import Row, print_result
from virtksm.cli.survey import read_survey, surveyor
from virtksm.guests.headroom import Headroom, NodeRoom, Nodes, Risk, find_headroom, find_node_rooms, host_of
from virtksm.guests.survey import Survey, guests_text
from virtksm.host.systemd import switch_on_here
from virtksm.model.snapshot import HostMemory, NodeMemory
from virtksm.paths import RuntimePaths
from virtksm.text import format_kib, nodes_text
from virtksm.tuning.ports import LocalFacts
from virtksm.tuning.sense import read_nodes
from virtksm.values import dump, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtksm.host.libvirt_connection import LibvirtHost  # as in survey.py
    from virtksm.host.local_facts import ProcFacts

CLOSED_SWAP = "zram is memory, and the guests' group may limit their swap"
Bound = dict[Nodes, NodeMemory]
"""Memory of the sets of NUMA nodes that guests are bound to, as far as they are there."""


def run(options: argparse.Namespace) -> None:
    gc.disable()  # a process of a tenth of a second has no garbage worth the time
    config, survey = surveyor(options, _read)
    found, memory, bound = survey()
    host = host_of(memory, found.ksm, config)
    if found.left_over is not None:  # each guest's savings are known, and its zero pages part of what it holds
        host = replace(host, saved_kib=found.of_guests_bytes // 1024, zero_kib=0)
    needs = [one.need for one in found.guests]
    headroom = find_headroom(needs, host)
    safe_kib, unmerging_kib = headroom.room_kib.safe, host.unmerging_kib
    nodes = find_node_rooms(needs, bound, config, unmerging_kib=unmerging_kib, safe_kib=safe_kib)
    notes = [*find_memory_notes(memory), *find_notes(found, is_full=memory.spare_kib is not None)]
    about = {"uri": found.uri, "source": found.source.value, "ksm_run": found.ksm.run, "guests": len(found.guests)}
    values = {**about, **dump(headroom), "nodes": dump(nodes), "notes": notes}
    print_result(options, values, headroom_rows(found, headroom, notes, nodes, usable_kib=memory.usable_kib))


def _read(paths: RuntimePaths, host: LibvirtHost, local: ProcFacts | None) -> tuple[Survey, HostMemory, Bound]:
    found = read_survey(paths, host, local)
    if local is None:
        return found, host.host_memory(), {}
    memory = local.host_memory()
    return found, memory, read_bound(found, memory, local)


def read_bound(found: Survey, memory: HostMemory, local: LocalFacts) -> Bound:
    sets = sorted({nodes for one in found.guests for nodes in one.xml.bound_to})
    return {nodes: one for nodes in sets if (one := read_nodes(nodes, memory, local)) is not None}


def find_memory_notes(memory: HostMemory) -> list[str]:
    """Return what makes usable memory differ from the machine's, and available from the kernel's MemAvailable."""
    notes = []
    if memory.hugetlb_kib:
        notes.append(
            f"{format_kib(memory.hugetlb_kib)} of the host's {format_kib(memory.total_kib)} are a pool of huge pages: "
            "neither total nor available"
        )
    if memory.limit_kib is not None:
        notes.append(f"the guests' control group is limited to {format_kib(memory.limit_kib)}")
    if memory.arc_kib:
        notes.append(f"ZFS's cache gives back up to {format_kib(memory.arc_kib)}: they count as available")
    if memory.commit_left_kib is not None:
        notes.append(
            f"vm.overcommit_memory is 2: new guests get {format_kib(memory.commit_left_kib)} at most (CommitLimit less "
            "Committed_AS), whatever merges"
        )
    closed_kib = (memory.swap_free_kib or 0) - (memory.spare_swap_kib or 0)
    if closed_kib:
        notes.append(f"{format_kib(closed_kib)} of the free swap do not count: {CLOSED_SWAP}")
    return notes


def find_notes(found: Survey, *, is_full: bool) -> list[str]:
    """Return what the figures lack; `is_full`: the host reports MemAvailable and swap."""
    unread = [one for one in found.guests if one.guest.rss_kib is None]
    boundless = [one for one in found.guests if one.max_kib is None]
    notes = []
    if unread:
        notes.append(f"the RSS of {guests_text(len(unread))} cannot be read: their whole maximum counts as growth")
    if boundless:
        notes.append(f"the maximum of {guests_text(len(boundless))} cannot be read: they count as fully grown")
    if not is_full:
        notes.append(
            "of another machine libvirt reports neither cache that can be freed, nor swap, nor merged zero pages: "
            "run this command there"
        )
    if found.ksm.run not in (None, 1):
        notes.append(f"KSM is off: nothing more merges ({switch_on_here()})")
    elif found.ksm.settings.pages_to_scan == 0:
        notes.append("ksmd is idle: new memory merges once it scans again")
    return notes


def headroom_rows(
    found: Survey, headroom: Headroom, notes: Sequence[str], nodes: Sequence[NodeRoom] = (), *, usable_kib: int
) -> Iterator[Row]:
    """Yield the rooms, the safest first, the risk of the last, and what is missing."""
    room, risk = headroom.room_kib, headroom.risk
    yield (
        "",
        "Host",
        f"{format_kib(usable_kib)} total, {format_kib(headroom.available_kib)} available, "
        f"{format_kib(headroom.reserve_kib)} kept free",
    )
    swapped = f" ({format_kib(headroom.swapped_kib)} from swap)" if headroom.swapped_kib else ""
    yield (
        "",
        "Guests",
        f"{len(found.guests)} running, may still grow by {format_kib(headroom.growth_kib)}{swapped}; KSM saves "
        f"{format_kib(headroom.saved_kib)} of their memory ({headroom.merge_ratio * 100:.1f} %)",
    )
    yield "", "Room", f"{format_kib(room.safe)}: safe, even if every merged page is unmerged"
    yield "", "", f"{format_kib(room.unmerged)}: if new guests share nothing"
    yield "", "", f"{format_kib(room.at_ratio)}: if they share as the present ones do"
    for one in nodes:
        yield (
            "",
            "",
            f"{format_kib(one.safe_kib)}: safe for guests bound to {nodes_text(one.nodes)}, where "
            f"{format_kib(one.available_kib)} are available, if no others take it",
        )
    tone = "warn" if risk.missing_kib else ""
    yield (
        tone,
        "Risk",
        f"with {format_kib(room.at_ratio)} more, unmerging everything takes up to "
        f"{format_kib(risk.needed_kib)}: {_missing_text(risk)}",
    )
    yield from (("", "Note", note) for note in notes)


def _missing_text(risk: Risk) -> str:
    if not risk.missing_kib:
        return "ok"
    missing = f"{format_kib(risk.missing_kib)} are missing"
    if risk.swap_free_kib is None or risk.missing_after_swap_kib is None:
        return f"{missing}, swap is unknown"
    if risk.swap_free_kib == 0:
        return f"{missing}, and no swap is free"
    if risk.missing_after_swap_kib == 0:
        return f"{missing}, which swap can hold ({format_kib(risk.swap_free_kib)} free)"
    after = format_kib(risk.missing_after_swap_kib)
    return f"{missing}, {after} of them also with all free swap ({format_kib(risk.swap_free_kib)})"
