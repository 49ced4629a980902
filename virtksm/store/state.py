"""Keeps a host's state as one JSON file in the runtime folder, under the host's pass lock.

A file that cannot be understood is an error, never taken for "no state": it may hold the administrator's baseline.
"""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager

from virtksm.errors import AlreadyRunning, StateUnusable
from virtksm.model.snapshot import MAXIMA
from virtksm.paths import RuntimePaths
from virtksm.store.files import ensure_runtime, locked, read_file, replace_file
from virtksm.tuning.freed import Freed
from virtksm.tuning.ownership import HostState, Ownership
from virtksm.values import build, dump, parse_object

SCHEMA = 1
MAX_CHARACTERS = 1 << 22
"""Of a state: that of 1,000 guests has some 100,000."""
MAX_LEVELS = 8
"""How deeply a policy's state may nest: adaptive's has four levels."""
LOCK_WAIT_S = 5.0


class StateFile:
    """The StateStore of one host."""

    def __init__(self, paths: RuntimePaths, host: str) -> None:
        self._paths = paths
        self._folder = paths.agent_dir
        self._lock = paths.host_lock(host)
        self._file = paths.host_state(host)
        self._saved: tuple[tuple[int, ...], HostState] | None = None
        """The state that this process saved last, and the marks of its file: no other has replaced it since."""

    @property
    def is_own(self) -> bool:
        try:
            return os.stat(self._folder).st_uid == os.geteuid()
        except OSError:
            return False

    def locked(self) -> AbstractContextManager[None]:
        ensure_runtime(self._paths)
        busy = AlreadyRunning(f"another virtksm pass holds {self._lock}", remedy=f"fuser -v {self._lock}")
        return locked(self._lock, busy, wait_s=LOCK_WAIT_S)

    def load(self) -> HostState:
        if self._saved is not None and self._saved[0] == self._marks():
            return self._saved[1]
        text = read_file(self._file)
        if text is None:
            return HostState()
        try:
            return parse_host_state(text)
        except ValueError as error:
            raise StateUnusable(
                f"{self._file}: {error}", remedy=f"rm {self._file} (the settings now in the kernel become the baseline)"
            ) from error

    def save(self, state: HostState) -> None:
        self._saved = None
        replace_file(self._file, dump_host_state(state))
        marks = self._marks()
        self._saved = None if marks is None else (marks, state)

    def _marks(self) -> tuple[int, ...] | None:
        try:
            found = os.stat(self._file, follow_symlinks=False)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


def read_freed(paths: RuntimePaths, host: str) -> Freed | None:
    """Return what the last pass has estimated; None where it did not, or its state is not for this user to read."""
    try:
        return StateFile(paths, host).load().freed
    except StateUnusable:
        return None


def dump_host_state(state: HostState) -> str:
    """Return a state as JSON text; the policy has dumped its own."""
    mine = {name: dump(getattr(state, name)) for name in HostState._fields if name != "policy_state"}
    return json.dumps({"schema": SCHEMA, **mine, "policy_state": state.policy_state})


def parse_host_state(text: str) -> HostState:
    """Parse what dump_host_state wrote; raises ValueError saying what is wrong.

    Of another version's estimate nothing is left: what is ours in the kernel must not depend on it.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"is longer than {MAX_CHARACTERS} characters")
    values = parse_object(text, "it")
    if values.pop("schema", None) != SCHEMA:
        raise ValueError(f"not a virtksm state of schema {SCHEMA}")
    try:
        state = build(HostState, values, least=0, is_exact=True)
    except ValueError:
        state = build(HostState, {**values, "freed": None}, least=0, is_exact=True)
    for name, entry in state.ownership.items():  # values that may go to the kernel one day
        if name not in MAXIMA:
            raise ValueError(f"{name!r:.40} is no parameter")
        build(Ownership, dump(entry), least=0, most=MAXIMA[name])
    if not _is_shallow(state.policy_state, MAX_LEVELS):
        raise ValueError("policy_state is nested too deeply")
    return state


def _is_shallow(value: object, levels: int) -> bool:
    """Tell whether a JSON value nests no deeper than `levels`, so that it can be written again."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return levels > 0 and all(_is_shallow(one, levels - 1) for one in inner)
    return True
