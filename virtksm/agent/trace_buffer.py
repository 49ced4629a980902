"""The lines of the last passes, for `virtksm trace record`: a bounded ring.

It is filled only while a recorder has asked lately. Every pass has a number; a recorder names the one that it wants
next and gets the lines from there on, as it writes them, and how many passes it has missed. Time is data.

`{"op": "trace", "session": S, "since": N}` is answered by `{"ok": true, "trace": {"session", "header", "lines",
"missed", "next", "more"}}`: `next` is the next request's `since`, `header` is null in all but a session's first answer.
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
"""For so long after a request passes are buffered for the next one."""
MAX_PASSES = 512
MAX_CHARACTERS = 1 << 22
"""Of all lines together: with 500 guests a pass has some 140,000."""
MAX_OF_A_PASS = 400_000
MAX_OF_AN_ANSWER = 600_000
"""Bounds an answer well within what a client reads (agent/control_client.py), quotation marks escaped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferedPass:
    """A pass as its line, and as a line that stands alone."""

    seq: int
    law: Law
    line: str
    alone: str

    @property
    def characters(self) -> int:
        return len(self.line) + len(self.alone)


class TraceBuffer:
    """The ring of one agent."""

    def __init__(self) -> None:
        self.session = secrets.token_hex(8)
        self._passes: deque[BufferedPass] = deque()
        self._next = 0
        self._asked_s: float | None = None
        self._last: tuple[Pass, Law, PassReport] | None = None
        self._state_after: str | None = None
        """The policy's state after the last pass in the ring, as JSON."""

    def add(self, report: PassReport, config: Config, *, now_s: float, at_s: float) -> Pass:
        """Take note of a pass under a configuration; return its line, which stands alone.

        `now_s` is CLOCK_MONOTONIC, `at_s` Unix time.
        """
        law = Law(policy=config.policy, config=law_of(config))
        alone = Pass(
            seq=self._next,
            at_s=round(at_s, 3),
            triggers=report.triggers,
            snapshot=report.snapshot,
            decision=report.decision,
            outcome=report.outcome.value,
            after=report.after,
            refused=tuple(map(str, report.refusals)),
            foreign=report.foreign,
            off=report.switched_off,
            law=law,
            continues=False,
            state=report.state_before,
        )
        self._last = alone, law, report
        self._next += 1
        if self._asked_s is not None and now_s - self._asked_s > ASKED_S:
            self._asked_s = None
            self._passes.clear()
        if self._asked_s is not None:
            self._buffer(alone, law, report)
        return alone

    def answer(self, request: Mapping[str, object], *, now_s: float, now: datetime) -> dict[str, object]:
        """Return the lines that a recorder lacks, from the pass `since` of the `session` on.

        A new recorder begins with the last pass, and gets the header; `now` is the wall clock's time.
        """
        if self._asked_s is None and self._last is not None:
            self._buffer(*self._last)
        self._asked_s = now_s
        since = request.get("since")
        if request.get("session") == self.session and isinstance(since, int):
            is_new, first = False, since
        else:
            is_new, first = True, max(self._next - 1, 0)
        chosen, missed = self._choose(first)
        lines = [one.line for one in chosen]
        if chosen and (is_new or missed):
            lines[0] = chosen[0].alone
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
        report = self._last[2]
        return Header(
            version=__version__,
            uri=report.uri,
            began=now.isoformat(timespec="seconds"),
            page_bytes=report.snapshot.ksm.page_kib * 1024,
            kernel=os.uname().release if report.snapshot.source is Source.LOCAL else None,
            law=law,
        )

    def _choose(self, first: int) -> tuple[list[BufferedPass], int]:
        """Return the passes from `first` on that follow each other and fit an answer, and how many lack before them."""
        chosen: list[BufferedPass] = []
        characters = 0
        for one in self._passes:
            if one.seq < first:
                continue
            characters += one.characters
            if chosen and (one.seq != chosen[-1].seq + 1 or characters > MAX_OF_AN_ANSWER):
                break
            chosen.append(one)
        return chosen, chosen[0].seq - first if chosen else 0

    def _buffer(self, alone: Pass, law: Law, report: PassReport) -> None:
        before = None if report.state_before is None else json.dumps(report.state_before)
        follows = bool(self._passes) and self._passes[-1].seq == alone.seq - 1
        line = replace(
            alone,
            law=None if follows and law == self._passes[-1].law else law,
            continues=follows and before == self._state_after,
        )
        buffered = BufferedPass(seq=alone.seq, law=law, line=dump_line(line), alone=dump_line(alone))
        self._state_after = None if report.state_after is None else json.dumps(report.state_after)
        if buffered.characters <= MAX_OF_A_PASS:
            self._passes.append(buffered)
        while len(self._passes) > MAX_PASSES or sum(one.characters for one in self._passes) > MAX_CHARACTERS:
            self._passes.popleft()
