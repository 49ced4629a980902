"""Keeps guests from merging while they run, one at a time: private ones and those that rewrite what merges.

`private_enforce` and `exclude_rewriters` ask for it; while the policy only observes, no guest is switched. The reader
of the guests' XML tells when anything has changed: guests, their XML, the configuration or the connection. Which guests
are rewriters the policy tells with each pass. `find_steps` then says which guests are to be switched; each is, beside
the loop and beside passes, which neither wait nor know of it. What was done is saved before and after, by process: an
agent that starts again switches nothing twice, and repeats what it was killed in. At its end everything stays as it is,
since private holds while an agent restarts.

A guest whose monitor hangs costs one thread, and no other guest its turn. What fails for a guest is tried again later
and later, and at once when an administrator asks for a pass. A guest that has just started has merged nothing yet; an
older one is unmerged only where its copies fit into memory. Only guests of this machine are switched: only here can
their processes be told apart, and the memory be judged.
"""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from virtksm.agent.calls import BlockingCalls, GuestCalls, wait_set
from virtksm.agent.guest_xml import GuestReader
from virtksm.agent.history import DISK_HANGS, DISK_LIMIT_S
from virtksm.config.schema import Config
from virtksm.errors import (
    GuestVanished,
    LibvirtTimeout,
    MonitorFailed,
    MonitorRefused,
    SensingFailed,
    Unsupported,
    VirtksmError,
)
from virtksm.guests.choices import COMMAND, PRIVATE, REWRITES, Choice, Choices, Seen, Step, find_steps, find_unmerged
from virtksm.guests.obstacles import is_private
from virtksm.guests.ports import GuestFacts, Monitor
from virtksm.guests.process import GuestMerging, find_needed_kib, still_mergeable
from virtksm.guests.xml import UNKNOWN, GuestXml
from virtksm.history.samples import MERGING, UNMERGED
from virtksm.model.snapshot import Guest
from virtksm.text import format_kib
from virtksm.tuning.sense import sense_ksm
from virtksm.values import replace

RETRY_S = 5.0
"""When what failed for a guest is tried again first, then after twice as long (chosen)."""
MAX_RETRY_S = 600.0
"""At most; for what lasts until an administrator changes something from the beginning (chosen)."""
MAX_HANGING = 3
"""Guests' calls that may hang at once; with more, the rest waits (chosen)."""
LASTING = (MonitorRefused, Unsupported)
OUT = {PRIVATE: "private", REWRITES: "rewrites what merges"}
AGAIN = {PRIVATE: "no longer private", REWRITES: "no longer kept out for rewriting"}
"""Why a guest was taken out, and let in again, for people."""


Made = bool | VirtksmError
"""What has come of a switch: whether it was made, or why not."""


class NoRoom(VirtksmError):
    """The copies of what is merged of a guest may not fit into memory."""


class Trouble(NamedTuple):
    """Why a guest was not switched, and when that is tried again."""

    guest: Guest
    merge: bool
    error: VirtksmError
    wait_s: float
    due_s: float

    @property
    def text(self) -> str:
        return f"guest {self.guest.name} {'does not merge again' if self.merge else 'was not unmerged'}"


class ThisHost(NamedTuple):
    """The part of this machine: what was chosen for its guests, and what makes its facts, for one thread each."""

    choices: Choices
    make_facts: Callable[[], GuestFacts]


class Found(NamedTuple):
    """The choices of runs that go on, by the guests' UUID, the guests (`Guest.key`) unmerged, and what is to do."""

    choices: dict[str, Choice]
    unmerged: frozenset[str]
    steps: tuple[Step, ...]


@dataclass(slots=True, kw_only=True)
class GuestSwitches:
    """The guests that are switched while they run. `source` gives the connection's monitors, None while there is none.

    `here` is None where the connection leads to another machine. The reader has the guests that are unmerged, for
    passes, one of which `changed` asks for. `switched` hears of each switch: of which guest, how, and why.
    """

    reader: GuestReader
    source: Callable[[], Monitor | None]
    changed: Callable[[], None] = lambda: None
    switched: Callable[[Guest, str, str], None] = lambda _guest, _kind, _why: None
    here: ThisHost | None = None
    clock: Callable[[], float] = time.monotonic
    calls: GuestCalls = field(default_factory=partial(GuestCalls, MAX_HANGING))
    disk: BlockingCalls = field(default_factory=partial(BlockingCalls, DISK_HANGS, DISK_LIMIT_S))
    found: dict[str, Choice] = field(default_factory=dict)
    """The choices of the runs that go on, by UUID."""
    troubles: dict[str, Trouble] = field(default_factory=dict)
    seen: asyncio.Event = field(default_factory=asyncio.Event)
    rewriters: tuple[str, ...] | None = None
    """The guests (`Guest.key`) that the policy takes out; None while it has not said so: those out stay out."""

    def follow(self, rewriters: tuple[str, ...] | None) -> None:
        if rewriters != self.rewriters:
            self.rewriters = rewriters
            self.seen.set()

    def see(self, *, again: bool = False) -> None:
        """Note that something has changed; `again`: what failed is tried at once, too."""
        if again:
            self.troubles.clear()
        self.seen.set()

    def connect(self, here: ThisHost | None) -> None:
        self.here = here
        self.see(again=True)

    async def switch_when_due(self) -> None:
        """Switch one guest, or wait until one is due or something has changed."""
        self.seen.clear()
        monitor, here, running = self.source(), self.here, self.reader.running
        if monitor is None or here is None or running is None:
            self.reader.name_exposed()
            await self.seen.wait()
            return
        try:
            work = partial(_find, here, running, dict(self.reader.known), self._config, self.rewriters)
            found = await self.disk.run("read which guests may merge", work)
        except VirtksmError as error:
            self.reader.reporter.choices_unreadable(error)
            self.reader.name_exposed()
            await wait_set(self.seen, MAX_RETRY_S)
            return
        if self._config.only_observes:  # also where that has come into force meanwhile
            found = found._replace(steps=())
        self._learn(found)
        self.calls.forget_returned()
        now_s = self.clock()
        due_s = {step: self._due_s(step, now_s) for step in found.steps}
        step = min(found.steps, key=lambda one: due_s[one], default=None)
        if step is not None and due_s[step] <= now_s:
            await self._switch(monitor, here, step)
            return
        self.reader.name_exposed()
        await wait_set(self.seen, None if step is None else due_s[step] - now_s)

    @property
    def _config(self) -> Config:
        return self.reader.configuration.in_force

    def _due_s(self, step: Step, now_s: float) -> float:
        if step.guest.key in self.calls.hanging or self.calls.is_full:
            return now_s + MAX_RETRY_S
        trouble = self.troubles.get(step.guest.key)
        return 0.0 if trouble is None else trouble.due_s

    def _learn(self, found: Found) -> None:
        self.found = found.choices
        self.reader.reporter.choices_unreadable(None)
        left = {step.guest.key for step in found.steps}
        self.troubles = {key: one for key, one in self.troubles.items() if key in left}
        unmerged = self.reader.notes.unmerged
        if unmerged != found.unmerged:
            unmerged.intersection_update(found.unmerged)  # not cleared: a pass may read it meanwhile
            unmerged.update(found.unmerged)
            self.changed()

    async def _switch(self, monitor: Monitor, here: ThisHost, step: Step) -> None:
        """Switch a guest; what takes longer than a call may is left to finish beside the others."""
        guest, loop = step.guest, asyncio.get_running_loop()

        def finish_late(made: Made) -> None:
            loop.call_soon_threadsafe(self._finish, step, made)

        work = partial(_try, monitor, here, step)
        limit_s = self._config.call_timeout_s
        try:
            made = await self.calls.one.run(f"switch guest {guest.name}", work, limit_s, discard=finish_late)
        except LibvirtTimeout as error:
            self.calls.set_aside(guest.key)
            self._put_off(step, error)
        else:
            self._finish(step, made)

    def _finish(self, step: Step, made: Made) -> None:
        """Report what has come of a switch, also of one that has taken longer than a call may, and look again."""
        self.seen.set()
        if isinstance(made, VirtksmError):
            self._put_off(step, made)
            return
        self.troubles.pop(step.guest.key, None)
        if not made:
            return
        why = (AGAIN if step.merge else OUT)[step.why]
        self.reader.reporter.guest_switched(step.guest.name, merge=step.merge, why=why)
        self.switched(step.guest, MERGING if step.merge else UNMERGED, why)

    def _put_off(self, step: Step, error: VirtksmError) -> None:
        """Report a failure, if it is news, and try again later: the longer it fails, the later."""
        guest = step.guest
        before = self.troubles.get(guest.key)
        wait_s = RETRY_S if before is None else min(before.wait_s * 2, MAX_RETRY_S)
        wait_s = MAX_RETRY_S if isinstance(error, LASTING) else wait_s
        trouble = Trouble(guest, step.merge, error, wait_s, self.clock() + wait_s)
        known = [one for key, one in self.troubles.items() if key == guest.key or one.error.message == error.message]
        if not isinstance(error, GuestVanished):
            is_news = not any(type(one.error) is type(error) for one in known)
            self.reader.reporter.guests_not_switched(trouble.text, error, is_news=is_news)
        self.troubles[guest.key] = trouble


def _find(
    here: ThisHost,
    running: Sequence[Guest],
    known: Mapping[str, GuestXml],
    config: Config,
    rewriters: Collection[str] | None,
) -> Found:
    """Read the choices, and the processes of the guests that they concern; forget those of runs that ended. Blocks."""
    entries, is_enforced = here.choices.read(), config.private_enforce == "unmerge"
    concerned = [
        (guest, xml)
        for guest, xml in ((guest, known.get(guest.key, UNKNOWN)) for guest in running)
        if guest.uuid in entries
        or (
            guest.key in known
            and (guest.key in (rewriters or ()) or (is_enforced and is_private(guest, xml, config.private_guests)))
        )
    ]
    facts = here.make_facts()
    processes = facts.identities(tuple(guest for guest, _ in concerned))
    seen = [Seen(guest, xml, process) for (guest, xml), process in zip(concerned, processes, strict=True)]
    current = {one.guest.uuid: one.process for one in seen}
    hidden = {uuid for uuid, process in current.items() if process is None}
    for uuid, one in entries.items():  # not by `running`: a command may have chosen for a guest that is not listed yet
        if uuid not in hidden and current.get(uuid) != one.process and not facts.lives(one.process):
            here.choices.exchange(uuid, one, None)
    entries = {uuid: one for uuid, one in entries.items() if current.get(uuid) == one.process}
    unmerged = find_unmerged(entries, (one.guest for one in seen), processes)
    steps = find_steps(seen, entries, config.private_guests, is_enforced=is_enforced, rewriters=rewriters)
    return Found(entries, unmerged, steps)


def _try(monitor: Monitor, here: ThisHost, step: Step) -> Made:
    """Switch a guest as `_make` does; return its error, which counts late, too."""
    try:
        return _make(monitor, here, step)
    except VirtksmError as error:
        return error


def _make(monitor: Monitor, here: ThisHost, step: Step) -> bool:
    """Switch a guest, and save that before and after. Blocks, while QEMU unmerges for as long as that takes.

    Returns whether it has: not where a command has chosen meanwhile, whose choice stays as it is afterwards, too.
    Raises NoRoom, Unsupported where this QEMU ignores it, MonitorFailed where the kernel has, and what the ports raise.
    """
    guest, merge, facts = step.guest, step.merge, here.make_facts()
    if step.process is None:
        raise SensingFailed("its process was not found", remedy="is all of /proc visible (docs/security.md)?")
    if not merge:
        _require_room(facts, guest)
    qemu = monitor.merging(guest.uuid)
    if qemu.is_ignored:
        raise Unsupported(f"QEMU {qemu.version} ignores it", remedy="start the guest again with QEMU 9.2 or newer")
    choice = Choice(
        name=guest.name,
        process=step.process,
        merge=merge,
        why=COMMAND if step.choice is not None and step.choice.by_command else step.why,
        at_s=time.time(),
        memory_kib=step.memory_kib,
    )
    if not here.choices.exchange(guest.uuid, step.choice, choice):
        return False
    monitor.set_merging(guest.uuid, merge=merge)
    if not merge and _still_merges(facts, guest, qemu):  # QEMU does nothing for a value that it has
        monitor.set_merging(guest.uuid, merge=True)
        monitor.set_merging(guest.uuid, merge=False)
    if not merge and _still_merges(facts, guest, qemu):
        raise MonitorFailed(
            f"QEMU {qemu.version} has taken it, but the kernel still merges guest {guest.name!r}",
            remedy=f"virtksm guest show {shlex.quote(guest.name)}; it is tried again",
        )
    here.choices.exchange(guest.uuid, choice, None if merge else replace(choice, is_done=True))
    return True


def _still_merges(facts: GuestFacts, guest: Guest, qemu: GuestMerging) -> bool:
    """Return whether the kernel may merge any of a guest's backends, as far as it tells this user."""
    memory = facts.mergeable_memory(guest)
    return memory is not None and bool(still_mergeable(qemu.backends, memory))


def _require_room(facts: GuestFacts, guest: Guest) -> None:
    """Raise NoRoom where the copies of what is merged of a guest may not fit into memory."""
    ksm, (process,) = sense_ksm(facts), facts.processes((guest,))
    held_kib = None if guest.rss_kib is None else guest.rss_kib + (ksm.zero_kib or 0)
    missing_kib = find_needed_kib(ksm, held_kib, process, None) - facts.host_memory().copies_kib
    if missing_kib > 0:
        raise NoRoom(
            f"unmerging guest {guest.name!r} may need {format_kib(missing_kib)} more memory than is available",
            remedy="stop guests, or move them to another host; it is tried again",
        )
