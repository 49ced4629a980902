"""Checks of the guests: those that cannot merge, those that should not, memory that they keep or the agent misses."""

from virtksm.doctor.facts import Facts
from virtksm.doctor.finding import CannotTell, DoesNotApply, Judgement, failed, info, passed, warned
from virtksm.doctor.reading.libvirt import GuestSeen
from virtksm.doctor.reading.own import AgentSeen
from virtksm.guests.obstacles import find_mixed, find_obstacles, is_private, pool_text
from virtksm.guests.xml import UNKNOWN
from virtksm.model.report import KEEP_OUT
from virtksm.text import format_kib, some_of

MAX_SWAPPED = 10
"""More than this part of the guests' memory in swap is worth a warning; below, what merging loses is small. As for swap
itself, a tenth."""
KEEP_APART = (
    "keep all but one group out: <memoryBacking><nosharepages/>, `virtksm guest unmerge`, or another host "
    "(docs/security.md)"
)
REPORT_FREE_PAGES = (
    "It is the cheapest saving: <memballoon model='virtio' freePageReporting='on'/> (libvirt 6.9, QEMU 5.1; Linux 5.7 "
    "in the guest)"
)
UNREAD = "see whether this user may read it: virsh dumpxml GUEST"


def check_can_merge(facts: Facts) -> Judgement:
    guests, patterns = facts.guests, facts.config.private_guests
    kept_out, stuck = 0, []
    for guest, xml, process, is_unmerged in _running(facts):
        obstacles = find_obstacles(xml, process, is_unmerged=is_unmerged)
        if obstacles and (is_unmerged or is_private(guest, xml, patterns)):
            kept_out += 1
        elif obstacles:
            stuck.append(f"{guest.name} ({', '.join(one.text for one in obstacles)})")
    if stuck:
        return warned(
            f"{len(stuck)} of {len(guests.running)} cannot: {some_of(stuck)}",
            "take that out of the guest's XML (virsh edit) and start it again, or declare it private, if that is meant",
        )
    if guests.unread:
        raise CannotTell(some_of(guests.unread), UNREAD)
    private = f", {kept_out} of them kept out" if kept_out else ""
    return passed(f"{len(guests.running)} guests run{private}")


def check_private(facts: Facts) -> Judgement:
    guests = facts.guests
    private = [one for one in _running(facts) if is_private(one.guest, one.xml, facts.config.private_guests)]
    names = [one.guest.name for one in private if not one.xml.is_kept_out and not one.is_unmerged]
    if names:
        why = facts.agent_seen.unswitched if facts.agent_seen else ()
        return failed(f"{len(names)} can merge: {some_of(names)}", why[0] if why else KEEP_OUT)
    overruled = [one.guest.name for one in private if one.process and one.process.ksm and one.process.ksm.merges_any]
    if overruled:
        return failed(
            f"{len(overruled)} can merge, as KSM is on for the whole process, whatever the XML says: "
            f"{some_of(overruled)}",
            "take MemoryKSM= out of the unit of libvirt's daemon, and start these guests again",
        )
    if guests.unread:
        raise CannotTell(some_of(guests.unread), UNREAD)
    if not private:
        return passed("none is private")
    return passed(f"{len(private)} of {len(guests.running)} guests are private, and kept out")


def check_rewriters(facts: Facts) -> Judgement:
    """Judge whether the agent finds the guests that rewrite what merges, where it is to, and keeps them out."""
    agent, config = _agent(facts), facts.config
    if not config.adaptive.exclude_rewriters or config.policy == "ksmtuned":
        return passed("exclude_rewriters is off")
    if agent.rewriters_unknown:
        raise CannotTell(agent.rewriters_unknown, "take exclude_rewriters out, or give the agent that right")
    named = [one.guest for one in facts.guests.running if one.guest.name in agent.rewriters]
    if config.only_observes:
        return passed(f"adaptive would keep out: {some_of([guest.name for guest in named]) or 'none'}")
    merging = [guest.name for guest in named if guest.uuid not in agent.unmerged | agent.merging]
    if merging:
        return warned(f"{len(merging)} still merge: {some_of(merging)}", (*agent.unswitched, "virtksm status")[0])
    out = some_of([guest.name for guest in named if guest.uuid in agent.unmerged])
    let_in = some_of([guest.name for guest in named if guest.uuid in agent.merging])
    by_command = f"; let merge by `virtksm guest merge`: {let_in}" if let_in else ""
    return passed(f"kept out for a day: {out or 'none'}{by_command}")


def check_groups(facts: Facts) -> Judgement:
    running = _running(facts)
    mixed = find_mixed((one[:3] for one in running), {one.guest.key for one in running if one.is_unmerged})
    groups = {one.xml.group for one in running if one.xml.group is not None}
    if not groups:
        return passed("no guest declares one")
    if mixed:
        return warned(f"guests of different groups can merge: {'; '.join(map(pool_text, mixed))}", KEEP_APART)
    if facts.guests.unread:
        raise CannotTell(some_of(facts.guests.unread), UNREAD)
    return passed(f"{len(groups)} declared, and guests of one alone can merge")


def check_free_pages(facts: Facts) -> Judgement:
    """Name the guests that keep the memory which their kernels have freed: to have it back is the cheapest saving.

    QEMU takes none of a guest whose memory is pinned or encrypted.
    """
    guests = facts.guests
    known = [one for one in guests.running if one.xml is not UNKNOWN]
    able = [one for one in known if not (one.xml.pins_memory or one.xml.is_confidential)]
    keeping = [one.guest.name for one in able if not one.xml.reports_free_pages]
    if keeping:
        return info(f"{len(keeping)} of {len(guests.running)} guests do not: {some_of(keeping)}. {REPORT_FREE_PAGES}")
    if guests.unread:
        raise CannotTell(some_of(guests.unread), UNREAD)
    return passed(f"all {len(able)} that can" if able else "no guest runs that can")


def check_other_processes(facts: Facts) -> Judgement:
    """Judge whether the agent sees the mergeable memory of other processes; else only its check scans find it."""
    facts.this_machine  # noqa: B018  # elsewhere there is nothing to judge
    other = facts.guests.other_processes
    if other is None:
        raise DoesNotApply("this kernel has no facts on processes (before 6.1), or they are hidden from this user")
    if other.unread:
        raise DoesNotApply(f"whether {other.unread} processes may merge is for root to read")
    if other.kib == 0:
        return passed("there is none")
    seen_kib = facts.agent_seen.other_processes_kib if facts.agent_seen else None
    processes = "1 process" if other.processes == 1 else f"{other.processes} processes"
    text = f"{format_kib(other.kib)} of {processes} that libvirt does not run"
    if seen_kib is not None and seen_kib * 2 < other.kib:
        return warned(
            f"{text}, of which the agent sees {format_kib(seen_kib)}: check scans find the rest, up to 4 hours apart",
            "give the unit of such a service MemoryKSM=yes (systemd 254), which every user may read",
        )
    return passed(text)


def check_swapped(facts: Facts) -> Judgement:
    """Judge whether much of the guests' memory is in swap, where nothing merges."""
    facts.this_machine  # noqa: B018  # of another one libvirt does not tell it
    guests = facts.guests
    swapped = {
        one.guest.name: one.process.swapped_kib for one in guests.running if one.process and one.process.swapped_kib
    }
    total_kib = sum(swapped.values())
    detail = f"{format_kib(total_kib)} are in swap"
    if total_kib * MAX_SWAPPED > sum(one.guest.rss_kib or 0 for one in guests.running) + total_kib:
        named = [f"{name} ({format_kib(kib)})" for name, kib in sorted(swapped.items(), key=lambda one: -one[1])]
        return warned(
            f"{detail}: {some_of(named)}. KSM merges nothing there, and it counts as no resident memory",
            "once enough memory is available, swapoff -a && swapon -a reads it back; else add memory, or move guests "
            "away",
        )
    return passed(detail if total_kib else "none is")


def check_limits(facts: Facts) -> Judgement:
    """Judge whether each guest may hold all of its memory: the kernel ends one at its own limit."""
    guests = facts.guests
    tight = []
    for guest, xml, _, _ in guests.running:
        needed_kib = max(0 if xml.has_hugepages else xml.memory_kib or 0, guest.rss_kib or 0)
        if xml.limit_kib is not None and xml.limit_kib < needed_kib:
            tight.append(f"{guest.name} ({format_kib(xml.limit_kib)} of {format_kib(needed_kib)})")
    if tight:
        return warned(
            f"{len(tight)} of {len(guests.running)} may hold less than their memory: {some_of(tight)}. There the "
            "kernel ends or throttles them, and merged pages count again when they are written to",
            "raise hard_limit and soft_limit above the guest's memory and QEMU's own (virsh memtune GUEST), or take "
            "<memtune> out",
        )
    return passed("no memtune is below its guest's memory")


def check_read(facts: Facts) -> Judgement:
    agent = _agent(facts)
    if agent.guests_unread:
        return warned(
            f"it cannot read {agent.guests_unread} of {agent.guests} guests: their memory counts as nothing",
            "where /proc is mounted with hidepid=, give virtksm.service SupplementaryGroups= of the group in its gid= "
            "(docs/security.md); see also `virtksm guests` as root",
        )
    return passed(f"of all {agent.guests}")


def _agent(facts: Facts) -> AgentSeen:
    if facts.known_agent is None:
        facts.this_machine  # noqa: B018  # another one's may run there
    if facts.agent_seen is None:
        raise DoesNotApply("no agent runs")
    return facts.agent_seen


def _running(facts: Facts) -> list[GuestSeen]:
    """Return the running guests; one was unmerged as this user may read, or as the agent says."""
    uuids = facts.agent_seen.unmerged if facts.agent_seen else frozenset()
    running = facts.guests.running
    return [one._replace(is_unmerged=one.is_unmerged or one.guest.uuid in uuids) for one in running]
