"""Why a guest's memory cannot merge: by its XML, its QEMU's command line, and the kernel's facts on its process. Pure.

Each was tried on a real kernel (Linux 6.18, QEMU 7.2; docs/guide.md), the devices by memory that io_uring has pinned;
but encryption was not: QEMU itself switches merging off for such a guest (machine_run_board_init).
Locked memory is no obstacle: it merges. Nor is a private mapping of a file or memfd: its written pages merge.

This module also finds the private guests that can merge all the same. KSM has one pool for the whole host, so only
`<memoryBacking><nosharepages/></memoryBacking>` keeps a guest out. Huge pages and shared memory keep a guest's own RAM
out, but QEMU offers video memory and firmware to KSM unless nosharepages forbids it, so they do not count there.

And it finds which groups' guests share a pool, so that each may learn what the other's memory holds. A guest's group,
its tenant say, is declared in its metadata (guests/xml.py). With merge_across_nodes = 0 Linux has a pool for each NUMA
node; which nodes a guest's pages are on is not known here, and they move, so all guests count as one pool then, too. A
kernel that keeps groups apart needs another `find_mixed`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import Enum
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import TYPE_CHECKING

from virtksm.guests.xml import GuestXml
from virtksm.model.snapshot import Guest

if TYPE_CHECKING:
    from typing import Self

    from virtksm.guests.process import GuestProcess  # making it is start-up time, and the agent has none


class Obstacle(Enum):
    """What keeps a guest's RAM from merging; the values are those of --json, `text` is for people.

    `is_whole`: nothing of the process merges; else video memory and firmware beside its RAM do. `is_lasting`: the
    guest's RAM stays out, or is to stay out, whatever its QEMU is told while it runs.
    """

    NOSHAREPAGES = ("nosharepages", "nosharepages in its XML", True, True)
    MERGE_OFF = ("mem_merge_off", "mem-merge=off on QEMU's command line", True, True)
    CONFIDENTIAL = ("confidential", "encrypted memory (launchSecurity)", True, True)
    HUGEPAGES = ("hugepages", "huge pages", False, True)
    SHARED_MEMORY = ("shared_memory", "shared memory (memfd or file)", False, True)
    PINNED = ("pinned", "pinned by a device (VFIO or vDPA)", False, False)
    UNMERGED = ("unmerged", "unmerged while it runs", False, False)
    NOT_OFFERED = ("not_offered", "QEMU offers nothing to KSM", True, False)
    KSM_OFF = ("ksm_off", "KSM is off", True, False)

    text: str
    is_whole: bool
    is_lasting: bool

    def __new__(cls, value: str, text: str, is_whole: bool, is_lasting: bool) -> Self:  # noqa: FBT001  # a table's row
        made = object.__new__(cls)
        made._value_ = value
        made.text, made.is_whole, made.is_lasting = text, is_whole, is_lasting
        return made


def find_obstacles(
    xml: GuestXml, process: GuestProcess | None = None, *, ksm_run: int | None = None, is_unmerged: bool = False
) -> tuple[Obstacle, ...]:
    """Return what keeps a guest's RAM from merging; nothing if it can merge, as far as is known.

    Without its process the arguments in the XML count; `ksm_run` is KSM's `run`, None where it is not known;
    `is_unmerged`: it was unmerged while it runs. A process that merges any memory (systemd's MemoryKSM=, which
    overrides nosharepages and mem-merge=off) is kept out by neither.
    """
    ksm = None if process is None else process.ksm
    merges_any = ksm is not None and ksm.merges_any
    found = []
    if xml.is_kept_out and not merges_any:
        found.append(Obstacle.NOSHAREPAGES)
    elif is_merge_off(process.arguments if process else xml.qemu_arguments) and not merges_any:
        found.append(Obstacle.MERGE_OFF)
    if xml.is_confidential:
        found.append(Obstacle.CONFIDENTIAL)
    if xml.has_hugepages:
        found.append(Obstacle.HUGEPAGES)
    elif xml.is_shared:
        found.append(Obstacle.SHARED_MEMORY)
    if xml.pins_memory:
        found.append(Obstacle.PINNED)
    if is_unmerged:
        found.append(Obstacle.UNMERGED)
    if ksm is not None and ksm.is_mergeable is False and not found:
        found.append(Obstacle.NOT_OFFERED)
    if ksm_run is not None and ksm_run != 1:
        found.append(Obstacle.KSM_OFF)
    return tuple(found)


def is_merge_off(arguments: Sequence[str]) -> bool:
    """Return whether QEMU's arguments switch merging off for the machine; the last one that says anything holds."""
    values = [
        value
        for name, options in pairwise(arguments)
        if name in ("-machine", "--machine", "-M")
        for key, _, value in (option.partition("=") for option in options.split(","))
        if key == "mem-merge"
    ]
    return bool(values) and values[-1] in ("off", "no", "false", "n")


def is_private(guest: Guest, xml: GuestXml, patterns: Iterable[str]) -> bool:
    """Return whether a guest is declared private, by its XML or by its name.

    Of the patterns that match its name the last one decides: "!" before it says that the guest is not private.
    """
    if xml.is_private:
        return True
    matching = [one for one in patterns if fnmatchcase(guest.name, one.removeprefix("!"))]
    return bool(matching) and not matching[-1].startswith("!")


def exposed(
    guests: Iterable[Guest], known: Mapping[str, GuestXml], patterns: Iterable[str], unmerged: Collection[str] = ()
) -> tuple[str, ...]:
    """Return the names of the private guests that can merge, of those whose XML is known by their key.

    `unmerged` are the keys of those that were unmerged while they run.
    """
    declared = tuple(patterns)
    seen = ((guest, xml) for guest in guests if (xml := known.get(guest.key)) and is_private(guest, xml, declared))
    return tuple(sorted(one.name for one, xml in seen if not xml.is_kept_out and one.key not in unmerged))


Pool = Mapping[str | None, Sequence[str]]
"""The names of a pool's guests, by their group; None for guests that declare none."""


def find_mixed(
    guests: Iterable[tuple[Guest, GuestXml, GuestProcess | None]], unmerged: Collection[str] = ()
) -> tuple[Pool, ...]:
    """Return the pools that guests of different groups share; guests without a group are none of the others'.

    A pool is all guests whose pages can merge with one another's; video memory and firmware beside their RAM count, but
    not guests (`Guest.key`) that were unmerged while they run, as of private ones: that is the remedy.
    """
    pool: dict[str | None, list[str]] = {}
    for guest, xml, process in guests:
        if guest.key not in unmerged and not any(obstacle.is_whole for obstacle in find_obstacles(xml, process)):
            pool.setdefault(xml.group, []).append(guest.name)
    return (pool,) if len(pool) > 1 else ()


def pool_text(pool: Pool) -> str:
    """Name a pool's groups, with the number of their guests."""
    groups = sorted(pool.items(), key=lambda one: (one[0] is None, one[0] or ""))
    return ", ".join(f"{'no group' if group is None else group} ({len(names)})" for group, names in groups)
