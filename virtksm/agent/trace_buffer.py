"""What the last passes were given, for whoever records it (`virtksm trace record`): a bounded ring of a trace's lines.

It is filled only while somebody has asked lately. Every pass has a number; a recorder names the one that it wants next
and gets what there is from there on, as the very lines that it writes, and how many it has missed. Time is data.

`{"op": "inputs", "session": S, "since": N}` is answered by `{"ok": true, "inputs": {"session", "header", "lines",
"missed", "next", "more"}}`: `next` is the next question's `since`, `header` is null for whoever has asked before.
"""

from __future__ import annotations

import json
import os
import secrets
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from virtksm import __version__
from virtksm.config.policy_keys import law_of
from virtksm.config.schema import Config
from virtksm.model.report import PassReport
from virtksm.model.snapshot import Source
from virtksm.trace import Header, Law, Pass
from virtksm.trace.text import dump_line

ASKED_S = 60.0
"""For so long after a question passes are kept for the next one."""
MAX_PASSES = 512
MAX_CHARACTERS = 1 << 22
"""Of all lines together: with 500 guests a pass has some 140,000."""
MAX_OF_A_PASS = 400_000
MAX_OF_AN_ANSWER = 600_000
"""Bounds an answer well within what a client reads (agent/control_client.py), quotation marks escaped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A pass as its line, and as the line of one that follows from nothing before it."""

    seq: int
    law: Law
    line: str
    opening: str

    @property
    def characters(self) -> int:
        return len(self.line) + len(self.opening)


def make_law(config: Config) -> Law:
    """Return what a trace tells of a configuration: the policy and its keys."""
    return Law(policy=config.policy, config=law_of(config))


class TraceBuffer:
    """The ring of one agent."""

    def __init__(self) -> None:
        self.session = secrets.token_hex(8)
        self._kept: deque[Kept] = deque()
        self._next = 0
        self._asked_s: float | None = None
        self._last: tuple[int, PassReport, Config, float] | None = None
        self._left: str | None = None
        """What the policy remembers after the last pass that was kept, as JSON."""

    def keep(self, report: PassReport, config: Config, *, now_s: float, at_s: float) -> None:
        """Take note of a pass under a configuration; `now_s` is CLOCK_MONOTONIC, `at_s` Unix time."""
        self._last = self._next, report, config, at_s
        self._next += 1
        if self._asked_s is not None and now_s - self._asked_s > ASKED_S:
            self._asked_s = None
            self._kept.clear()
        if self._asked_s is not None:
            self._add(*self._last)

    def answer(self, request: Mapping[str, object], *, now_s: float, now: datetime) -> dict[str, object]:
        """Return what a recorder has not seen yet, from the pass `since` of the `session` on.

        Whoever comes new begins with the last pass, and gets the header; `now` is the wall clock's time.
        """
        if self._asked_s is None and self._last is not None:
            self._add(*self._last)
        self._asked_s = now_s
        since = request.get("since")
        if request.get("session") == self.session and isinstance(since, int):
            is_new, first = False, since
        else:
            is_new, first = True, max(self._next - 1, 0)
        chosen, missed = self._choose(first)
        lines = [one.line for one in chosen]
        if chosen and (is_new or missed):
            lines[0] = chosen[0].opening
        return {
            "session": self.session,
            "header": dump_line(self._header(chosen[0].law, now)) if is_new and chosen else None,
            "lines": lines,
            "missed": 0 if is_new else missed,
            "next": chosen[-1].seq + 1 if chosen else first,
            "more": bool(chosen) and chosen[-1].seq < self._next - 1,
        }

    def _header(self, law: Law, now: datetime) -> Header:
        assert self._last is not None, "there is no line without a pass"
        _, report, _, _ = self._last
        snapshot = report.snapshot
        return Header(
            version=__version__,
            uri=report.uri,
            began=now.isoformat(timespec="seconds"),
            page_bytes=snapshot.ksm.page_kib * 1024,
            kernel=os.uname().release if snapshot.source is Source.LOCAL else None,
            law=law,
        )

    def _choose(self, first: int) -> tuple[list[Kept], int]:
        """Return the passes from `first` on that follow each other and fit an answer, and how many lack before them."""
        chosen: list[Kept] = []
        characters = 0
        for one in self._kept:
            if one.seq < first:
                continue
            characters += one.characters
            if chosen and (one.seq != chosen[-1].seq + 1 or characters > MAX_OF_AN_ANSWER):
                break
            chosen.append(one)
        return chosen, chosen[0].seq - first if chosen else 0

    def _add(self, seq: int, report: PassReport, config: Config, at_s: float) -> None:
        law = make_law(config)
        before = None if report.state_before is None else json.dumps(report.state_before)
        follows = bool(self._kept) and self._kept[-1].seq == seq - 1
        line = Pass(
            seq=seq,
            at_s=round(at_s, 3),
            triggers=report.triggers,
            snapshot=report.snapshot,
            decision=report.decision,
            outcome=report.outcome.value,
            after=report.after,
            off=report.switched_off,
            law=None if follows and law == self._kept[-1].law else law,
            continues=follows and before == self._left,
            state=report.state_before,
        )
        opening = dump_line(replace(line, law=law, continues=False))
        kept = Kept(seq=seq, law=law, line=dump_line(line), opening=opening)
        self._left = None if report.state_after is None else json.dumps(report.state_after)
        if kept.characters <= MAX_OF_A_PASS:
            self._kept.append(kept)
        while len(self._kept) > MAX_PASSES or sum(one.characters for one in self._kept) > MAX_CHARACTERS:
            self._kept.popleft()
