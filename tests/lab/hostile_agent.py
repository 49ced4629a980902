"""An agent in the hands of somebody who means harm: at the real one's socket, in its folders, with whatever answers.

It serves from a thread. `say` is what it makes of a request: the parts that it sends, one after the other, and then it
closes. `honest` answers as an agent does, in every field; `wrong_answers` is each of its answers with one thing wrong.
"""

import copy
import json
import os
import select
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Self

from hypothesis import settings

from tests.lab.hang import HANG_S
from tests.lab.samples import NOW, UNMERGED, UNSWITCHED, a_pass, agent_facts
from virtksm.agent.trace_buffer import TraceBuffer
from virtksm.config.schema import Config
from virtksm.errors import Cause, SettingsRefused
from virtksm.history.samples import EVENT_FIELDS, SAMPLE_FIELDS
from virtksm.host.bounded import Waiting
from virtksm.model.current import after_pass
from virtksm.model.decision import Pause, Threshold
from virtksm.model.report import Foreign
from virtksm.store.history import SCHEMA
from virtksm.trace.text import pass_values
from virtksm.values import replace

Json = dict[str, Any]
Say = Callable[[Json], Iterable[bytes]]

NOBODY = 65534
TEXT = "a\x1b]0;owned\x07\x1b[2J\u202eb\r\nFAKE LINE"
"""Sets a terminal's title, clears its screen, turns what follows around, and begins a line of its own."""
PROGRAM_URI = "qemu+ext:///system?command={}"
"""libvirt runs the program that such a URI names."""
MISSING = object()
FORMULA = "$\\frac{$"
"""matplotlib takes what is between dollars for mathematics."""
WRONG: tuple[Any, ...] = (
    MISSING,
    None,
    TEXT,
    FORMULA,
    "x" * 100_000,
    True,
    -1,
    2**64,
    1e19,
    [],
    {},
    [None],
    [[TEXT]],
    {TEXT: TEXT},
)
UNREADABLE = (
    b"",
    b"null\n",
    b"[]\n",
    b'"x"\n',
    b"{}\n",
    b'{"ok": true}\n',
    b'{"ok": true, "status": {"agent"',
    b"\xff\xfe\n",
    b"[" * 200_000 + b"\n",
    b'{"ok": true, "status": NaN, "pass": 1e999, "history": -Infinity, "decisions": ' + b"9" * 5000 + b"}\n",
    b'{"ok": false, "error": ' + json.dumps(TEXT * 1000).encode() + b', "exit_code": 1e3}\n',
    b'{"ok": false, "error": [], "exit_code": 77}\n',
    b'{"ok": false, "other_uri": {}}\n',
    b"x" * (2 << 20),
)
"""Answers that are none, or none of use."""

_THRESHOLD = Threshold(then="scans", quantity="available_kib", value=9, present=3)
_REPORT = replace(
    a_pass(),
    policy="adaptive",
    refusals=(SettingsRefused("no", parameter="pages_to_scan", cause=Cause.UNKNOWN),),
    foreign=(Foreign(parameter="pages_to_scan", ours=1, found=2),),
    exposed=("vault",),
    find_thresholds=lambda: (_THRESHOLD,),
)
_LATE = Waiting(what="pass", since_s=990.0)
_FACTS = agent_facts(
    last=_REPORT,
    waiting=_LATE,
    error="no answer",
    current=after_pass(_REPORT),
    switched={**UNMERGED, "m": replace(UNMERGED["u"], merge=True, why="command")},
    unswitched=UNSWITCHED,
)
PASS: Json = _REPORT.as_dict(with_thresholds=True)
LINE: Json = pass_values(
    TraceBuffer()
    .add(replace(_REPORT, paused=Pause(since="then")), Config(), now_s=0.0, at_s=1_767_323_045.5)
    .summary([_THRESHOLD.as_dict()])
)
"""A line of a trace; `as_line` makes one text of it."""
STATUS: Json = {**_FACTS.as_dict(NOW), "full_scan": {"done_kib": 1, "total_kib": 3, "left_s": 2.5}}


def _history(now_s: float) -> Json:
    sample = [now_s - 60, 2, 300, 900, 500, 5, 1.5, 1, 100, 20, "sweep", 2, 1]
    rows = [sample, [now_s - 30, *sample[1:]]]
    return {
        "now_s": now_s,
        "samples": {"columns": list(SAMPLE_FIELDS), "rows": rows},
        "events": {"columns": list(EVENT_FIELDS), "rows": [[now_s - 40, "started", "vm", "u", "booted"]]},
        "curves": {
            "saved_kib": [[[now_s - 60, 5], [now_s, 6]]],
            "core_percent": [[[now_s - 60, 1.5], [now_s, 1.5]]],
            "ksmd": {"core_percent": 1.5, "over_s": 60.0},
        },
    }


def answer_to(op: object) -> Json:
    """Return what an agent answers, in every field."""
    match op:
        case "status":
            answer: Json = {"status": STATUS}
        case "history":
            answer = {"history": _history(time.time())}
        case "decisions":
            answer = {"decisions": [LINE]}
        case "trace":
            answer = {"trace": {"session": "s", "header": None, "lines": [], "missed": 0, "next": 1, "more": False}}
        case _:
            answer = {"pass": PASS}
    return copy.deepcopy({"ok": True, **answer})


def as_line(answer: Json) -> bytes:
    """Return an answer as an agent sends it: each decision is a line of its own, as text."""
    if isinstance(lines := answer.get("decisions"), list):
        answer = {**answer, "decisions": [json.dumps(one) if isinstance(one, dict) else one for one in lines]}
    return json.dumps(answer).encode() + b"\n"


def honest(request: Json) -> Iterable[bytes]:
    return [as_line(answer_to(request.get("op")))]


def say_always(said: bytes, _: Json) -> list[bytes]:
    return [said]


def wrong_answers(op: str, one_in: int = 3) -> Iterator[tuple[str, bytes]]:
    """Yield the answer to `op` with each of its fields replaced by some of `WRONG`, and where that was.

    It is one in so many of these; with `--hypothesis-profile search` each field by each of `WRONG`.
    """
    searches = settings.get_current_profile_name() == "search"
    every = [(place, value) for place in _places(answer_to(op)) for value in WRONG]
    for place, value in every[:: 1 if searches else one_in]:
        answer = answer_to(op)
        inner: Any = answer
        for key in place[:-1]:
            inner = inner[key]
        if value is MISSING:
            del inner[place[-1]]
        else:
            inner[place[-1]] = value
        yield f"{'.'.join(map(str, place))} {'missing' if value is MISSING else repr(value)[:80]}", as_line(answer)


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:  # noqa: ANN401  # JSON
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*place, key)
        yield from _places(one, (*place, key))


class HostileAgent:
    """Serves at the control socket of a runtime folder, and at the status socket; use it as a context manager."""

    def __init__(self, runtime_dir: Path, say: Say = honest) -> None:
        self.say = say
        self._folder = runtime_dir / "agent"
        self._listeners: list[socket.socket] = []
        self._woken, self._waking = os.pipe()
        self._is_over = threading.Event()
        self._serving = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        for name in ("control.sock", "status.sock"):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(self._folder / name))
            listener.listen()
            os.chown(self._folder / name, NOBODY, NOBODY)
            self._listeners.append(listener)
        os.chown(self._folder, NOBODY, NOBODY)
        self._serving.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        os.write(self._waking, b"x")
        self._serving.join(HANG_S)
        for listener in self._listeners:
            listener.close()
        os.close(self._woken)
        os.close(self._waking)

    def drip(self, _: Json) -> Iterator[bytes]:
        """Say a byte now and then, for as long as it is served."""
        while not self._is_over.wait(0.02):
            yield b" "

    def keep_silent(self, _: Json) -> Iterator[bytes]:
        """Say nothing for as long as it is served."""
        self._is_over.wait()
        yield b""

    def _serve(self) -> None:
        while True:
            ready = select.select([*(one.fileno() for one in self._listeners), self._woken], [], [])[0]
            if self._woken in ready:
                return
            for listener in (one for one in self._listeners if one.fileno() in ready):
                connection, _ = listener.accept()
                threading.Thread(target=self._answer, args=(connection, self.say), daemon=True).start()

    def _answer(self, connection: socket.socket, say: Say) -> None:
        with connection, suppress(OSError):
            line = connection.makefile("rb").readline()
            for part in say(json.loads(line)) if line else ():  # none: who connected has gone
                connection.sendall(part)


_FIELDS = ("at_s", *SAMPLE_FIELDS[1:], *EVENT_FIELDS[1:], "line")
_ENDLESS = "WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n) SELECT id"
PLANTED_HISTORIES = {
    "view": f"CREATE VIEW {{0}} AS {_ENDLESS}, {', '.join(f'zeroblob(99999999) AS {name}' for name in _FIELDS)} FROM n",
    "endless view": f"CREATE VIEW {{0}} AS {_ENDLESS}, {', '.join(f'id AS {name}' for name in _FIELDS)} FROM n",
    "computed columns": "CREATE TABLE {0} (id INTEGER PRIMARY KEY, x, "
    f"{', '.join(f'{name} AS (zeroblob(100000000))' for name in _FIELDS)}); "
    f"INSERT INTO {{0}} (x) {_ENDLESS} FROM n LIMIT 2000",
    "virtual table": f"CREATE VIRTUAL TABLE {{0}} USING fts4({', '.join(_FIELDS)})",
}
"""What stands for each of the three tables in a history that somebody has planted: a few KiB that come to any size."""


def plant_history(path: Path, statement: str) -> None:
    """Make a history of our version out of `statement`, for each of its tables."""
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA user_version = {SCHEMA}")
        for table in ("samples", "events", "decisions"):
            database.executescript(statement.format(table))
