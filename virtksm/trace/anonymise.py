"""Takes guests' names and identities out of a trace, so that it can be shown to others. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from virtksm.trace import Header, Line, Pass, State
from virtksm.values import replace


class Anonymiser:
    """Strips line after line; each guest keeps one number throughout, and each URI its scheme."""

    def __init__(self) -> None:
        self._numbers: dict[str, str] = {}

    def strip(self, line: Line) -> Line:
        """Return the line without names."""
        match line:
            case Header():
                return replace(line, uri=line.uri.partition(":")[0] + ":")
            case Pass():
                guests = tuple(
                    replace(guest, uuid=self._number(guest.uuid), name=self._number(guest.uuid))
                    for guest in line.snapshot.guests
                )
                snapshot = replace(line.snapshot, guests=guests)
                return replace(line, snapshot=snapshot, state=self._anonymous_state(line.state))
        return line

    def _anonymous_state(self, state: State | None) -> State | None:
        known = None if state is None else state.get("guests_kib")
        if state is None or not isinstance(known, Mapping):
            return state
        return {**state, "guests_kib": {self._anonymous_key(str(key)): kib for key, kib in known.items()}}

    def _anonymous_key(self, key: str) -> str:
        uuid, _, run = key.rpartition("/")  # Guest.key
        return f"{self._number(uuid)}/{run}" if uuid else key  # other processes have one key, and no name

    def _number(self, uuid: str) -> str:
        return self._numbers.setdefault(uuid, f"guest-{len(self._numbers) + 1}")
