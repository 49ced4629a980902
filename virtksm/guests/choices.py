"""Which running guests may merge other than they were started: chosen by the agent, or by an administrator's command.

A choice is one run's: QEMU forgets it with its process. Pure. The rules, in their order (`find_steps`):

1. A run that a command has switched stays as it is (`virtksm guest merge` and `unmerge`), unless both are to keep it
   out: rule 5 holds for that.
2. A private guest whose RAM can merge is unmerged, where that is enforced. One whose RAM cannot has other memory that
   may, such as video memory, which QEMU does not switch: it stays exposed.
3. A guest whose XML cannot be read stays as it is, unless its name says that it is private.
4. What the agent has unmerged, and is private no longer, merges again.
5. A switch that was begun and not finished is made again, as QEMU's answer is not known. So is one of a guest that has
   another maximum since: memory that is plugged in may merge.
6. A private guest whose process was not found is to be unmerged: the attempt says why it fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from virtksm.guests.obstacles import find_obstacles, is_private
from virtksm.guests.xml import UNKNOWN, GuestXml
from virtksm.model.snapshot import Guest


class Choice(NamedTuple):
    """Whether one run of a guest may merge; `process` names the run, `at_s` is Unix time.

    `is_done` is False from before QEMU is asked until it has answered. `memory_kib` is the maximum that it had then.
    """

    name: str
    process: str
    merge: bool
    by_command: bool
    at_s: float
    is_done: bool = False
    memory_kib: int | None = None


class Choices(Protocol):
    """Whether guests may merge other than they were started, by UUID. Every method blocks and raises StateUnusable."""

    def read(self) -> Mapping[str, Choice]:
        """Return the choices, also those of runs that have ended."""

    def note(self, uuid: str, choice: Choice) -> None:
        """Put a guest's choice in place of its earlier one."""

    def exchange(self, uuid: str, old: Choice | None, new: Choice | None) -> bool:
        """Put a choice in place of an old one, unless another is there by now; None is none. Returns whether it has."""


class Seen(NamedTuple):
    """A running guest; `process` names its run, None where its process was not found."""

    guest: Guest
    xml: GuestXml
    process: str | None


class Step(NamedTuple):
    """A switch to make; `process` names the run, None where it was not found, `choice` is what it was before."""

    guest: Guest
    process: str | None
    merge: bool
    memory_kib: int | None = None
    choice: Choice | None = None


def find_steps(
    seen: Iterable[Seen], choices: Mapping[str, Choice], patterns: Sequence[str], *, is_enforced: bool
) -> tuple[Step, ...]:
    """Return the switches to make, those that unmerge first; `choices` are by the guests' UUID."""
    steps = []
    for guest, xml, process in seen:
        choice = choices.get(guest.uuid)
        if choice is not None and choice.process != process:
            choice = None  # an earlier run's
        private = is_private(guest, xml, patterns)
        is_out = any(one.is_lasting for one in find_obstacles(xml))
        merge = not (is_enforced and private) or is_out
        is_theirs = choice is not None and choice.by_command and (choice.merge or merge)
        if is_theirs or (xml is UNKNOWN and not private):
            continue
        has_grown = choice is not None and choice.memory_kib != xml.memory_kib and xml is not UNKNOWN
        is_so = choice is not None and choice.is_done and choice.merge == merge and not has_grown
        if not is_so and not (merge and choice is None):
            steps.append(Step(guest=guest, process=process, merge=merge, memory_kib=xml.memory_kib, choice=choice))
    return tuple(sorted(steps, key=lambda step: step.merge))


def find_unmerged(
    choices: Mapping[str, Choice], running: Iterable[Guest], processes: Iterable[str | None]
) -> frozenset[str]:
    """Return the guests (`Guest.key`) that were unmerged while they run; `processes` are theirs, in the same order."""
    seen = ((guest, process, choices.get(guest.uuid)) for guest, process in zip(running, processes, strict=True))
    return frozenset(
        guest.key
        for guest, process, one in seen
        if one is not None and one.process == process and one.is_done and not one.merge
    )
