"""`virtksm guest show|unmerge|merge`: one running guest's memory, taken out of KSM or let back in, through its QEMU.

1. libvirt has no call for it, but QEMU's monitor has, and libvirt marks a guest as tainted for that. So `show` asks
   QEMU only if told to, and where nothing is to be switched nothing is sent.
2. Before it acts, `unmerge` says what it costs. It refuses where the copies do not fit into memory.
3. What has come of it the kernel tells, never QEMU, which notes what it was asked for also where the kernel refused.
   Unmerging is over when QEMU answers.
"""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from virtksm.cli.ask_agent import ask_agent
from virtksm.cli.connection import Libvirt, config_or_defaults, requested_uri, warn
from virtksm.cli.layout import Row, print_result, show
from virtksm.cli.main import Parser
from virtksm.cli.unmerge import FREE_MEMORY, fit_text
from virtksm.errors import LibvirtUnreachable, MonitorFailed, Unsupported, VirtksmError
from virtksm.guests.choices import COMMAND, Choice
from virtksm.guests.obstacles import Obstacle, find_obstacles
from virtksm.guests.ports import Connection, GuestFacts, Monitor
from virtksm.guests.process import GuestMerging, MergeableMemory, find_held_s, find_needed_kib, still_mergeable
from virtksm.guests.xml import parse_guest_xml
from virtksm.model.snapshot import Guest
from virtksm.paths import RuntimePaths
from virtksm.store.choices import ChoiceFile
from virtksm.text import format_kib, printable
from virtksm.tuning.sense import sense_ksm
from virtksm.wiring import is_this_machine

READ_WITHIN_S = 10.0
"""For smaps the kernel walks all of a guest's pages: some milliseconds a GiB."""
SLOWER = 10
"""Unmerging may take so many times as long as was measured before it counts as hanging (chosen)."""
TAINTS = "libvirt marks the guest as tainted (custom-monitor) until it ends"
LASTS = "until the guest starts anew or migrates; <memoryBacking><nosharepages/></memoryBacking> in its XML lasts"
UNREADABLE = "unknown: /proc/PID/smaps of its QEMU cannot be read; root may (CAP_SYS_PTRACE)"
ELSEWHERE = "unknown: of another machine libvirt does not tell it; run `virtksm guest show` there"


def add_options(parser: Parser) -> None:
    parser.add_argument("guest", metavar="GUEST", help="a running guest, by its name or UUID")
    match parser.words[1]:
        case "show":
            parser.add_argument("--backends", action="store_true", help=f"ask its QEMU, too: {TAINTS}")
        case "unmerge":
            forced = "also where memory may not suffice, and where this QEMU is known to ignore it"
            parser.add_argument("--force", action="store_true", help=forced)
        case "merge":
            parser.add_argument("--force", action="store_true", help="also where this QEMU is known to ignore it")


def run_show(options: argparse.Namespace) -> None:
    switch = _open(options, read_only=not options.backends)
    if options.backends:
        switch.ask()
    print_result(options, as_dict(switch.seen), rows(switch.seen) + cost_rows(switch.seen))


def run_unmerge(options: argparse.Namespace) -> None:
    """Take the guest out of KSM, and print what is left merged. Raises VirtksmError."""
    switch = _open(options, read_only=False)
    nothing = switch.seen.why_nothing_merges
    if nothing is not None:
        switch.keep_out()
        print_result(options, as_dict(switch.seen), [("", "Nothing", f"to unmerge: {nothing}")])
        return
    if not options.json:
        show(cost_rows(switch.seen))
    switch.unmerge(force=options.force)
    print_result(options, as_dict(switch.seen), [*rows(switch.seen), ("", "Lasts", LASTS)])


def run_merge(options: argparse.Namespace) -> None:
    switch = _open(options, read_only=False)
    switch.merge(force=options.force)
    print_result(options, as_dict(switch.seen), rows(switch.seen))


def _open(options: argparse.Namespace, *, read_only: bool) -> GuestSwitch:
    from virtksm.host.libvirt_monitor import LibvirtMonitor
    from virtksm.host.local_facts import ProcFacts

    config, _ = config_or_defaults(options.config)
    libvirt = Libvirt(requested_uri(options.connect, options.paths), config.call_timeout_s)
    host = libvirt.open(read_only=read_only)
    facts = ProcFacts(limit_s=READ_WITHIN_S) if is_this_machine(host.uri, config) else None
    return GuestSwitch(host, LibvirtMonitor(host), facts, options.guest, libvirt.run, partial(save, options.paths))


def save(paths: RuntimePaths, uuid: str, choice: Choice) -> None:
    """Save what was chosen, so that the agent leaves this run as it is, and have the agent read it once it is done."""
    try:
        ChoiceFile(paths).note(uuid, choice)
        answer = ask_agent(paths, {"op": "retune"}) if choice.is_done else None
        why = None if answer is None or "pass" in answer else f"it answers: {answer.get('error', 'nothing')}"
    except VirtksmError as error:
        why = str(error) if choice.is_done else None
    if why is not None:
        warn(f"the agent may not know of this, and may switch it again: {why}")


class KnownGuest(NamedTuple):
    """What is known of a running guest's merging; `qemu` is None unless it was asked.

    On another machine `is_here` is False. `memory` and `zero_kib` are None where the kernel does not tell them.
    `memory_kib` is the maximum in the guest's XML.
    """

    uri: str
    is_here: bool
    guest: Guest
    memory_kib: int | None
    memory: MergeableMemory | None
    zero_kib: int | None
    needed_kib: int
    available_kib: int
    obstacles: tuple[Obstacle, ...]
    taints: tuple[str, ...] | None
    qemu: GuestMerging | None = None

    @property
    def kept_out(self) -> Obstacle | None:
        """What keeps its RAM out, whatever its QEMU is told."""
        return next((one for one in self.obstacles if one.is_lasting), None)

    @property
    def why_nothing_merges(self) -> str | None:
        """Why there is nothing to unmerge; None if there may be."""
        memory, kept_out = self.memory, self.kept_out
        if memory is not None and not memory.mappings_kib:
            return "the kernel may merge none of its memory"
        is_overruled = kept_out is not None and kept_out.is_whole and memory is not None
        return None if kept_out is None or is_overruled else f"its memory cannot merge: {kept_out.text}"

    @property
    def mergeable(self) -> tuple[str, ...]:
        """The backends that the kernel may merge, as far as it tells; none before QEMU was asked."""
        backends = () if self.qemu is None else self.qemu.backends
        return () if self.memory is None else still_mergeable(backends, self.memory)


def read_guest(host: Connection, facts: GuestFacts | None, name: str) -> KnownGuest:
    """Read all that is known without QEMU's monitor; raises VirtksmError, also for a guest that does not run."""
    guest = find_guest(host.running_guests(with_max=False), name)
    try:
        xml = parse_guest_xml(host.guest_xml(guest.uuid))
    except ValueError as error:
        raise VirtksmError(f"the XML of {guest.name!r} {error}") from error
    process = None if facts is None else facts.processes((guest,))[0]
    ksm = host.ksm_state() if facts is None else sense_ksm(facts)
    zero_pages = None if process is None or process.ksm is None else process.ksm.zero_pages
    memory = None if facts is None else facts.mergeable_memory(guest)
    return KnownGuest(
        uri=host.uri,
        is_here=facts is not None,
        guest=guest,
        memory_kib=xml.memory_kib,
        memory=memory,
        zero_kib=None if zero_pages is None else ksm.kib(zero_pages),
        needed_kib=find_needed_kib(ksm, xml.memory_kib, process, memory),
        available_kib=(facts or host).host_memory().copies_kib,
        obstacles=find_obstacles(xml, process, ksm_run=ksm.run),
        taints=host.taints(guest.uuid),
    )


class GuestSwitch:
    """The switch of one running guest, and what was `seen` of it last; `facts` is None on another machine.

    `run(what, call, more_s=)` makes calls of libvirt within a limit that is `more_s` above the usual. `note` saves, by
    UUID, what is chosen for the run that the command has found: before QEMU is asked, as the command may be killed.
    """

    def __init__(
        self,
        host: Connection,
        monitor: Monitor,
        facts: GuestFacts | None,
        name: str,
        run: Callable[..., Any],
        note: Callable[[str, Choice], None],
    ) -> None:
        """Read the guest of this name or UUID; raises VirtksmError."""
        self._host, self._monitor, self._facts, self._run, self._note = host, monitor, facts, run, note
        self._read(name)
        self._process = None if facts is None else facts.identities((self.seen.guest,))[0]

    def _read(self, name: str) -> None:
        work = partial(read_guest, self._host, self._facts, name)
        self.seen: KnownGuest = self._run("guest", work, more_s=READ_WITHIN_S)

    def ask(self) -> GuestMerging:
        """Ask the guest's QEMU, which marks it as tainted; raises VirtksmError."""
        uuid = self.seen.guest.uuid
        qemu: GuestMerging
        qemu, taints = self._run("QEMU", lambda: (self._monitor.merging(uuid), self._host.taints(uuid)))
        self.seen = self.seen._replace(qemu=qemu, taints=taints)
        return qemu

    def keep_out(self) -> None:
        """Have a guest stay out of which nothing merges, though its XML lets it: the agent may have unmerged it."""
        if self.seen.kept_out is None:
            self._choose(merge=False, is_done=True)

    def unmerge(self, *, force: bool) -> None:
        """Take the guest out of KSM; raises VirtksmError where that does not fit, or the kernel says otherwise."""
        seen = self.seen
        if seen.needed_kib > seen.available_kib and not force:
            raise VirtksmError(fit_text(seen.needed_kib, seen.available_kib), remedy=FREE_MEMORY)
        qemu = self._ask_whether_it_heeds(force=force)
        if self.seen.memory is not None and not self.seen.mergeable:
            self._choose(merge=False, is_done=True)  # it is out already
            return
        self._choose(merge=False)
        if not all(one.merges for one in qemu.backends):
            # QEMU leaves a backend alone that has the value, also where the kernel had refused it.
            self._set(merge=True)
        self._set(merge=False)
        if left := self.seen.mergeable:
            raise MonitorFailed(
                f"QEMU {qemu.version} has taken it, but the kernel still merges {', '.join(map(printable, left))}",
                remedy="QEMU 9.1 ignores it; else the kernel had too little memory: once more, when more is free",
            )
        self._choose(merge=False, is_done=True)

    def merge(self, *, force: bool) -> None:
        """Let the guest's memory merge; raises VirtksmError where it is kept out, or the kernel says otherwise."""
        name = printable(self.seen.guest.name)
        if kept_out := self.seen.kept_out:
            raise VirtksmError(
                f"the memory of {name} cannot merge: {kept_out.text}",
                remedy="change that in its XML (virsh edit), and start it anew",
            )
        qemu = self._ask_whether_it_heeds(force=force)
        self._choose(merge=True)
        self._set(merge=True)
        if self.seen.memory is not None and not self.seen.mergeable:
            none = f"the kernel may merge none of {name}'s memory"
            raise MonitorFailed(f"QEMU {qemu.version} has taken it, but {none}", remedy="QEMU 9.1 ignores it")
        self._choose(merge=True, is_done=True)

    def _ask_whether_it_heeds(self, *, force: bool) -> GuestMerging:
        qemu = self.ask()
        if qemu.is_ignored and not force:
            raise Unsupported(
                f"QEMU {qemu.version} ignores it, unless its distributor has mended that",
                remedy="take QEMU 9.2 or newer; --force tries, and the kernel tells what has come of it",
            )
        return qemu

    def _set(self, *, merge: bool) -> None:
        guest, more_s = self.seen.guest, 0.0 if merge else SLOWER * find_held_s(self.seen.needed_kib)
        try:
            self._run("QEMU", partial(self._monitor.set_merging, guest.uuid, merge=merge), more_s=more_s)
        except LibvirtUnreachable as error:
            error.message, error.remedy = (
                f"{error.message}; QEMU may go on",
                f"virtksm guest show {shlex.quote(guest.name)}",
            )
            raise
        self._read(guest.uuid)  # not by its name, which another guest may have by now
        self.ask()

    def _choose(self, *, merge: bool, is_done: bool = False) -> None:
        """Save what is chosen for this run; where its process is not known nothing is."""
        if self._process is None:
            return
        choice = Choice(
            name=self.seen.guest.name,
            process=self._process,
            merge=merge,
            why=COMMAND,
            at_s=time.time(),
            is_done=is_done,
            memory_kib=self.seen.memory_kib,
        )
        self._note(self.seen.guest.uuid, choice)


def rows(seen: KnownGuest) -> list[Row]:
    tainted = "unknown: libvirt before 7.1 does not tell"
    if seen.taints is not None:
        tainted = "; ".join(seen.taints) or "no"
    rows = [("", "Guest", seen.guest.name), ("", "Kernel", _kernel_text(seen))]
    if seen.qemu is not None:
        backends = ", ".join(
            f"{one.name} {format_kib(one.size_kib)} {'may' if one.merges else 'must not'} merge"
            for one in seen.qemu.backends
        )
        rows.append(("", "QEMU", f"{seen.qemu.version}: {backends}"))
    rows += [("warn", "Obstacle", one.text) for one in seen.obstacles]
    return [*rows, ("", "Tainted", tainted)]


def _kernel_text(seen: KnownGuest) -> str:
    if seen.memory is None:
        return UNREADABLE if seen.is_here else ELSEWHERE
    merged_kib = seen.memory.merged_kib
    merged = "" if merged_kib is None else f", {format_kib(merged_kib)} are merged"
    zero = f" and {format_kib(seen.zero_kib)} of zero pages" if seen.zero_kib else ""
    return f"{format_kib(sum(seen.memory.mappings_kib))} may merge{merged}{zero}"


def cost_rows(seen: KnownGuest) -> list[Row]:
    """Return what unmerging costs, for people; nothing where there is nothing to unmerge."""
    if seen.why_nothing_merges is not None:
        return []
    tone = "warn" if seen.needed_kib > seen.available_kib else ""
    held = f"its QEMU stands still for about {find_held_s(seen.needed_kib):.1f} s"
    return [
        (tone, "Memory", fit_text(seen.needed_kib, seen.available_kib)),
        ("", "Cost", f"while it unmerges {held}; {TAINTS}"),
    ]


def as_dict(seen: KnownGuest) -> dict[str, object]:
    memory, qemu = seen.memory, seen.qemu
    return {
        "uri": seen.uri,
        "name": seen.guest.name,
        "uuid": seen.guest.uuid,
        "obstacles": [one.value for one in seen.obstacles],
        "taints": seen.taints,
        "mergeable_kib": None if memory is None else sum(memory.mappings_kib),
        "merged_kib": None if memory is None else memory.merged_kib,
        "zero_kib": seen.zero_kib,
        "needed_kib": seen.needed_kib,
        "available_kib": seen.available_kib,
        "held_s": round(find_held_s(seen.needed_kib), 3),
        "qemu": qemu
        and {
            "version": qemu.version,
            "backends": [{"name": one.name, "size_kib": one.size_kib, "merge": one.merges} for one in qemu.backends],
        },
    }


def find_guest(running: Iterable[Guest], name: str) -> Guest:
    """Return the guest of a name or UUID; raises VirtksmError if none runs."""
    guests = tuple(running)
    found = [one for one in guests if one.uuid == name] or [one for one in guests if one.name == name]
    if not found:  # by UUID first: a guest may be called as another's
        raise VirtksmError(f"no running guest is called {printable(name)}", remedy="virtksm guests")
    return found[0]
