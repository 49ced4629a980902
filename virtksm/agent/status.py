"""The agent's facts without asking libvirt: the answer to `status`, a pure function of what `read_facts` reads.

Rules:
1. libvirt is silent while there is no connection, and while a call has not returned for `SILENT_AFTER_S`: calls take
   milliseconds, and one that does not return is waited for even when it was given up. The silence began with the first
   of the two.
2. ksmd may be stranded while libvirt is silent and the settings written last, as far as is known, let it scan: only
   libvirt can slow it down. A pass that has not returned may have written anything. Before any pass it is unknown.
   Where the policy only observes, ksmd is others' to slow down.
3. The most that this costs: batches of `pages_to_scan` of the most expensive pages, `sleep_millisecs` apart.

`as_dict` is the interface of `virtksm status --json` (docs/reference.md lists the fields); fields are added, never
renamed, while SCHEMA stays.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from virtksm import __version__
from virtksm.agent.agent import Agent
from virtksm.agent.guest_switches import Trouble
from virtksm.agent.passes import DonePass
from virtksm.errors import VirtksmError
from virtksm.guests.choices import Choice
from virtksm.host.bounded import Waiting
from virtksm.model.current import CurrentKsm, after_pass
from virtksm.model.report import PassReport
from virtksm.policy.adaptive.state import DEFAULT_COST_S_PER_KIB
from virtksm.tuning.ports import LocalFacts
from virtksm.tuning.sense import sense_current
from virtksm.uri import is_alias
from virtksm.wiring import is_this_machine

SCHEMA = 1

SILENT_AFTER_S = 2.0
A_CONNECTION = "a connection"
A_PASS = "pass"  # noqa: S105  # what BlockingCalls calls it


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentFacts:
    """The agent's facts at one moment; times are CLOCK_MONOTONIC seconds.

    `lost_s` is when the connection was lost, or the agent began without one; None while there is one. `error` is why
    the last attempt to connect, or the last pass, failed. `done` is the last pass. `current` is this machine's KSM as
    it is, or the last pass's. `room_kib` is the room for more guest memory, by name. `switched` are the guests that
    were switched while they run, by UUID, `unswitched` those of which that failed. `unread` is why it is unknown which
    guests rewrite what merges.
    """

    uri: str
    policy: str
    now_s: float
    lost_s: float | None
    waiting: Waiting | None
    error: str | None
    done: DonePass | None
    next_s: float | None
    current: CurrentKsm | None
    room_kib: Mapping[str, int] | None
    switched: Mapping[str, Choice] = field(default_factory=dict)
    unswitched: tuple[Trouble, ...] = ()
    unread: VirtksmError | None = None

    @property
    def last(self) -> PassReport | None:
        return None if self.done is None else self.done.report

    @property
    def silence(self) -> Waiting | None:
        """The call that libvirt has not answered, and since when (rule 1)."""
        call = self.waiting
        is_late = call is not None and self.now_s - call.since_s > SILENT_AFTER_S
        if self.lost_s is None:
            return call if is_late else None
        if call is None or not is_late:
            return Waiting(what=A_CONNECTION, since_s=self.lost_s)
        return Waiting(what=call.what, since_s=min(self.lost_s, call.since_s))

    @property
    def may_be_stranded(self) -> bool | None:
        """Whether ksmd may go on scanning while nothing can slow it down (rule 2); None where that is unknown."""
        silence = self.silence
        if silence is None or self.policy == "observe":
            return False
        if silence.what == A_PASS:
            return True
        if self.last is None:
            return None
        return bool(self.last.after.pages_to_scan) and self.last.snapshot.ksm.run in (None, 1)

    @property
    def known_room_kib(self) -> Mapping[str, int] | None:
        """The room for more guest memory; None while libvirt is silent: guests may have come."""
        return None if self.silence else self.room_kib

    def as_dict(self, now: datetime) -> dict[str, object]:
        """Return the answer as JSON values; `now` is the wall clock's time."""
        silence = self.silence
        since = None if silence is None else (now - timedelta(seconds=self.now_s - silence.since_s)).astimezone(UTC)
        last = self.last
        settings = None if last is None else last.after
        return {
            "schema": SCHEMA,
            "agent": True,
            "version": __version__,
            "uri": self.uri,
            "policy": self.policy,
            "libvirt": {
                "connected": self.lost_s is None,
                "answers": silence is None,
                "silent_since": None if since is None else since.isoformat(timespec="seconds"),
                "silent_s": None if silence is None else round(self.now_s - silence.since_s, 3),
                "waiting_for": None if silence is None else silence.what,
                "error": self.error,
            },
            "last_pass": None if last is None else last.as_dict(),
            "full_scan": self._full_scan(),
            "last_pass_ago_s": None if self.done is None else round(self.now_s - self.done.ended_s, 3),
            "next_pass_s": None if self.next_s is None else round(max(0.0, self.next_s - self.now_s), 3),
            "stranded": {
                "possible": self.may_be_stranded,
                "settings": None if settings is None else settings.as_dict(),
                "worst_core_percent": None if last is None else round(worst_core_percent(last), 1),
            },
            "paused": None if last is None else last.paused is not None,
            "switched": {
                "unmerged": self._switched(merge=False),
                "merging": self._switched(merge=True),
                "failed": [
                    {"name": one.guest.name, "uuid": one.guest.uuid, "message": f"{one.text}: {one.error}"}
                    for one in sorted(self.unswitched, key=lambda trouble: trouble.guest.name)
                ],
                "rewriters_unknown": None if self.unread is None else str(self.unread),
            },
            "now": None if self.current is None else self.current.as_dict(),
            "room_kib": self.known_room_kib,
        }

    def _switched(self, *, merge: bool) -> list[dict[str, object]]:
        return [
            {"name": one.name, "uuid": uuid, "at_s": one.at_s, "why": one.why}
            for uuid, one in sorted(self.switched.items(), key=lambda item: item[1].name)
            if one.merge is merge
        ]

    def _full_scan(self) -> dict[str, float | None] | None:
        """Return how far the full scan is that the last pass went on with; None outside of one."""
        done = self.done
        if done is None or "full_scan_kib" not in (numbers := done.report.decision.reason.numbers):
            return None
        left_s = numbers["full_scan_left_s"]
        if left_s is not None:
            left_s = round(max(left_s - (self.now_s - done.ended_s), 0.0), 3)
        return {"done_kib": numbers["scanned_kib"], "total_kib": numbers["full_scan_kib"], "left_s": left_s}


def read_facts(agent: Agent, facts: LocalFacts | None) -> AgentFacts:
    """Return an agent's facts at this moment; asks libvirt nothing. `facts` are this machine's; passes have theirs."""
    now_s = time.monotonic()
    config, uri, done = agent.configuration.in_force, agent.connection.known_uri, agent.passes.last
    is_here = not is_alias(uri) and is_this_machine(uri, config)
    switches, host = agent.listeners.switches, agent.connection.host
    return AgentFacts(
        uri=uri,
        policy=config.policy,
        now_s=now_s,
        lost_s=agent.connection.lost_s,
        waiting=agent.passes.calls.waiting or (None if host is None else host.late_list),
        error=agent.reporter.trouble,
        done=done,
        next_s=agent.passes.next_s(now_s),
        current=read_current(facts if is_here else None, None if done is None else done.report),
        room_kib=agent.listeners.room_kib,
        switched={uuid: one for uuid, one in switches.found.items() if one.is_done},
        unswitched=tuple(switches.troubles.values()),
        unread=agent.listeners.merged.failure,
    )


def read_current(local: LocalFacts | None, last: PassReport | None) -> CurrentKsm | None:
    """Read this machine's KSM, some 20 small files; without `local`, or without KSM, take the last pass's."""
    current = None if local is None else sense_current(local, None if last is None else last.snapshot)
    if current is None or not any(current.ksm.settings.items()):
        return None if last is None else after_pass(last)
    return current


def worst_core_percent(last: PassReport) -> float:
    """Return the most that ksmd uses of one core with the settings that a pass has left."""
    batch_s = (last.after.pages_to_scan or 0) * last.snapshot.ksm.page_kib * DEFAULT_COST_S_PER_KIB
    sleep_s = (last.after.sleep_millisecs or 0) / 1000
    return 100 * batch_s / (batch_s + sleep_s) if batch_s else 0.0
