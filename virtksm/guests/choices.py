"""Which running guests may merge other than they were started: chosen by the agent, or by an administrator's command.

A choice is one run's: QEMU forgets it with its process. Pure. The rules, in their order (`find_steps`):

1. A run that a command has switched stays as it is (`virtksm guest merge` and `unmerge`), unless both are to keep it
   out: rule 5 holds for that.
2. A guest is unmerged that is private, where that is enforced, or that rewrites what merges, by the policy. One whose
   RAM cannot merge has other memory that may, such as video memory, which QEMU does not switch: it stays exposed.
3. A guest whose XML cannot be read stays as it is, unless its name says that it is private.
4. What the agent has unmerged merges again once neither is true.
5. A switch that was begun and not finished is made again, as QEMU's answer is not known. So is one of a guest that has
   another maximum since: memory that is plugged in may merge.
6. A private guest whose process was not found is to be unmerged: the attempt says why it fails.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from virtksm.guests.obstacles import find_obstacles, is_private
from virtksm.guests.xml import UNKNOWN, GuestXml
from virtksm.model.snapshot import Guest

PRIVATE, REWRITES, COMMAND = "private", "rewrites", "command"
"""Why a run was switched: it is private, it rewrites what merges, a command has asked for it."""


class Choice(NamedTuple):
    """Whether one run of a guest may merge, and `why`; `process` names the run, `at_s` is Unix time.

    `is_done` is False from before QEMU is asked until it has answered. `memory_kib` is the maximum that it had then.
    """

    name: str
    process: str
    merge: bool
    why: str
    at_s: float
    is_done: bool = False
    memory_kib: int | None = None

    @property
    def by_command(self) -> bool:
        return self.why == COMMAND


class Choices(Protocol):
    """Whether guests may merge other than they were started, by UUID. Every method blocks and raises StateUnusable."""

    def read(self) -> Mapping[str, Choice]:
        """Return the choices, also those of runs that have ended."""

    def exchange(self, uuid: str, old: Choice | None, new: Choice | None) -> bool:
        """Put a choice in place of an old one, unless another is there by now; None is none. Returns whether it has."""


class Seen(NamedTuple):
    """A running guest; `process` names its run, None where its process was not found."""

    guest: Guest
    xml: GuestXml
    process: str | None


class Step(NamedTuple):
    """A switch to make; `why` the guest is taken out, or was. `process` names the run, None where it was not found.

    `choice` is what it was before.
    """

    guest: Guest
    process: str | None
    merge: bool
    why: str
    memory_kib: int | None = None
    choice: Choice | None = None


def find_steps(
    seen: Iterable[Seen],
    choices: Mapping[str, Choice],
    patterns: Sequence[str],
    *,
    is_enforced: bool,
    rewriters: Collection[str] | None = (),
) -> tuple[Step, ...]:
    """Return the switches to make, those that unmerge first; `choices` are by UUID, `rewriters` by `Guest.key`.

    Where `rewriters` is None, none is taken out, and none let in.
    """
    steps = []
    for guest, xml, process in seen:
        choice = choices.get(guest.uuid)
        if choice is not None and choice.process != process:
            choice = None  # an earlier run's
        private = is_private(guest, xml, patterns)
        why = PRIVATE if is_enforced and private else REWRITES if guest.key in (rewriters or ()) else None
        if any(one.is_lasting for one in find_obstacles(xml)):
            why = None
        is_theirs = choice is not None and choice.by_command and (choice.merge or why is None)
        if is_theirs or (xml is UNKNOWN and not private):
            continue
        if why is not None:
            is_so = choice is not None and choice.is_done and not choice.merge and choice.why in (why, COMMAND)
            has_grown = choice is not None and choice.memory_kib != xml.memory_kib and xml is not UNKNOWN
            if has_grown or not is_so:
                steps.append(Step(guest, process, merge=False, why=why, memory_kib=xml.memory_kib, choice=choice))
        elif choice is not None and not (rewriters is None and choice.why == REWRITES):
            steps.append(Step(guest, process, merge=True, why=choice.why, memory_kib=xml.memory_kib, choice=choice))
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
