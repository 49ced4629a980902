"""The lines of the last passes, for `virtksm trace record`: a bounded ring.

It is filled only while a recorder has asked lately. When it is full it begins anew, as its first line stands alone.
Every pass has a number; a recorder names the one that it wants next and gets the lines from there on, as it writes
them, and how many passes it has missed. Time is data.

`{"op": "trace", "session": S, "since": N}` is answered by `{"ok": true, "trace": {"session", "header", "lines",
"missed", "next", "more"}}`: `next` is the next request's `since`, `header` is null in all but a session's first answer.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Mapping
from datetime import datetime

from virtksm import __version__
from virtksm.config.policy_keys import law_of
from virtksm.config.schema import Config
from virtksm.model.report import PassReport
from virtksm.model.snapshot import Source
from virtksm.trace import Header, Law, Pass
from virtksm.trace.text import dump_line
from virtksm.values import replace

ASKED_S = 60.0
"""For so long after a request passes are buffered for the next one."""
MAX_PASSES = 512
MAX_CHARACTERS = 1 << 22
"""Of all lines together: with 500 guests a pass has some 140,000."""
MAX_OF_A_PASS = 400_000
MAX_OF_AN_ANSWER = 600_000
"""Bounds an answer well within what a client reads (agent/control_client.py), quotation marks escaped."""


class TraceBuffer:
    """The ring of one agent: each pass's number and its line. The first line stands alone."""

    def __init__(self) -> None:
        self.session = os.urandom(8).hex()
        self.ring: deque[tuple[int, str]] = deque()
        self._asked_s: float | None = None
        self._last: tuple[Pass, PassReport] | None = None
        self._configured: tuple[Config, Law] | None = None
        self._law: Law | None = None
        self._state_after: str | None = None
        """The policy's state after the last pass in the ring, as JSON; `_law` is that pass's."""

    def add(self, report: PassReport, config: Config, *, now_s: float, at_s: float) -> Pass:
        """Take note of a pass under a configuration; return its line, which stands alone.

        `now_s` is CLOCK_MONOTONIC, `at_s` Unix time.
        """
        if self._configured is None or self._configured[0] is not config:
            self._configured = config, Law(policy=config.policy, config=law_of(config))
        alone = Pass(
            seq=0 if self._last is None else self._last[0].seq + 1,
            at_s=round(at_s, 3),
            triggers=report.triggers,
            snapshot=report.snapshot,
            decision=report.decision,
            outcome=report.outcome.value,
            after=report.after,
            refused=tuple(map(str, report.refusals)),
            foreign=report.foreign,
            paused=report.paused,
            law=self._configured[1],
            continues=False,
            state=report.state_before,
        )
        self._last = alone, report
        if self._asked_s is not None and now_s - self._asked_s > ASKED_S:
            self._asked_s = None
            self.ring.clear()
        if self._asked_s is not None:
            self._buffer(alone, report)
        return alone

    def answer(self, request: Mapping[str, object], *, now_s: float, now: datetime) -> dict[str, object]:
        """Return the lines that a recorder lacks, from the pass `since` of the `session` on.

        A new recorder begins with the last pass, and gets the header; `now` is the wall clock's time. The ring begins
        anew with it, too.
        """
        last = -1 if self._last is None else self._last[0].seq
        since = request.get("since")
        is_new = request.get("session") != self.session or not isinstance(since, int)
        first = since if isinstance(since, int) and not is_new else max(last, 0)
        if self._last is not None and (is_new or self._asked_s is None):
            self.ring.clear()
            self._buffer(*self._last)
        self._asked_s = now_s
        chosen = self._choose(first)
        end = chosen[-1][0] if chosen else first - 1
        return {
            "session": self.session,
            "header": dump_line(self._header(now)) if is_new and chosen else None,
            "lines": [line for _, line in chosen],
            "missed": chosen[0][0] - first if chosen else 0,
            "next": end + 1,
            "more": bool(chosen) and end < last,
        }

    def _header(self, now: datetime) -> Header:
        assert self._last is not None, "there is no line without a pass"
        alone, report = self._last
        assert alone.law is not None, "it stands alone"
        return Header(
            version=__version__,
            uri=report.uri,
            began=now.isoformat(timespec="seconds"),
            page_bytes=report.snapshot.ksm.page_kib * 1024,
            kernel=os.uname().release if report.snapshot.source is Source.LOCAL else None,
            law=alone.law,
        )

    def _choose(self, first: int) -> list[tuple[int, str]]:
        """Return the passes from `first` on that follow each other and fit an answer."""
        chosen: list[tuple[int, str]] = []
        characters = 0
        for seq, line in self.ring:
            characters += len(line) if seq >= first else 0
            if chosen and (seq != chosen[-1][0] + 1 or characters > MAX_OF_AN_ANSWER):
                break
            if seq >= first:
                chosen.append((seq, line))
        return chosen

    def _buffer(self, alone: Pass, report: PassReport) -> None:
        before = None if report.state_before is None else json.dumps(report.state_before)
        follows = bool(self.ring) and self.ring[-1][0] == alone.seq - 1
        law = None if follows and alone.law == self._law else alone.law
        line = dump_line(replace(alone, law=law, continues=follows and before == self._state_after))
        self._law = alone.law
        self._state_after = None if report.state_after is None else json.dumps(report.state_after)
        if len(self.ring) == MAX_PASSES or sum(len(one) for _, one in self.ring) + len(line) > MAX_CHARACTERS:
            self.ring.clear()
            line = dump_line(alone)
        if len(line) <= MAX_OF_A_PASS:
            self.ring.append((alone.seq, line))
