"""Keeps whether guests may merge other than they were started, by UUID, as one file in the runtime folder.

It is there as long as guests run: neither outlives the host's boot. The agent writes it, and so do commands, under a
lock of its own. A file that cannot be understood is an error: what was unmerged would not merge again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager

from virtksm.errors import AlreadyRunning, StateUnusable
from virtksm.guests.choices import Choice, find_unmerged
from virtksm.guests.ports import GuestFacts
from virtksm.model.snapshot import Guest
from virtksm.paths import LOCAL, RuntimePaths
from virtksm.store.files import ensure_runtime, locked, read_file, replace_file
from virtksm.values import build, dump, parse_object

SCHEMA = 1
LOCK_WAIT_S = 5.0


class ChoiceFile:
    """The choices of this machine's guests. Every method blocks on the disk and raises StateUnusable."""

    def __init__(self, paths: RuntimePaths) -> None:
        self._paths = paths
        self._file = paths.host_choices(LOCAL)

    def read(self) -> dict[str, Choice]:
        text = read_file(self._file)
        if text is None:
            return {}
        try:
            return _parse(text)
        except ValueError as error:
            remedy = f"rm {self._file} (guests that were unmerged stay so until they start again)"
            raise StateUnusable(f"{self._file}: {error}", remedy=remedy) from error

    def note(self, uuid: str, choice: Choice) -> None:
        """Put a guest's choice in place of its earlier one."""
        with self._locked():
            self._save({**self.read(), uuid: choice})

    def exchange(self, uuid: str, old: Choice | None, new: Choice | None) -> bool:
        with self._locked():
            choices = self.read()
            if choices.pop(uuid, None) != old:
                return False
            self._save(choices if new is None else {**choices, uuid: new})
            return True

    def _locked(self) -> AbstractContextManager[None]:
        ensure_runtime(self._paths)
        lock = f"{self._file}.lock"
        return locked(lock, AlreadyRunning(f"{lock} is held", remedy=f"fuser -v {lock}"), wait_s=LOCK_WAIT_S)

    def _save(self, choices: Mapping[str, Choice]) -> None:
        guests = {uuid: dump(choice) for uuid, choice in choices.items()}
        replace_file(self._file, json.dumps({"schema": SCHEMA, "guests": guests}) + "\n")


def read_unmerged(paths: RuntimePaths, facts: GuestFacts, running: tuple[Guest, ...]) -> frozenset[str]:
    """Return the guests (`Guest.key`) of this machine that were unmerged; none where this user may not read that."""
    try:
        choices = ChoiceFile(paths).read()
    except StateUnusable:
        return frozenset()
    concerned = tuple(guest for guest in running if guest.uuid in choices)
    return find_unmerged(choices, concerned, facts.identities(concerned) if concerned else ())


def _parse(text: str) -> dict[str, Choice]:
    values = parse_object(text, "it")
    guests = values.get("guests")
    if values.get("schema") != SCHEMA or not isinstance(guests, dict):
        raise ValueError(f"not virtksm's of schema {SCHEMA}")
    return {uuid: build(Choice, choice, least=0) for uuid, choice in guests.items()}
