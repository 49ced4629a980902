"""Takes guests' names and identities out of a trace, so that it can be shown to others. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from virtksm.model.snapshot import IMAGE
from virtksm.trace import Header, Line, Pass
from virtksm.values import replace


class Anonymiser:
    """Strips line after line; each guest and each image keeps one number throughout, and each URI its scheme."""

    def __init__(self) -> None:
        self._numbers: dict[str, dict[str, str]] = {}

    def strip(self, line: Line) -> Line:
        match line:
            case Header():
                return replace(line, uri=line.uri.partition(":")[0] + ":")
            case Pass():
                guests = tuple(
                    replace(
                        guest,
                        uuid=self._number(guest.uuid),
                        name=self._number(guest.uuid),
                        image=self._anonymous(guest.image),
                    )
                    for guest in line.snapshot.guests
                )
                snapshot = replace(line.snapshot, guests=guests)
                rewriters = tuple(self._anonymous(line.decision.rewriters))
                decision = replace(line.decision, rewriters=rewriters)
                return replace(line, snapshot=snapshot, decision=decision, state=self._anonymous(line.state))
        return line

    def _anonymous(self, value: Any) -> Any:  # noqa: ANN401  # a policy's state, and all that is in it
        if isinstance(value, Mapping):
            return {self._anonymous(key): self._anonymous(held) for key, held in value.items()}
        if isinstance(value, list | tuple):
            return [self._anonymous(held) for held in value]
        if not isinstance(value, str):
            return value
        uuid, _, run = value.rpartition("/")  # Guest.key
        if value.startswith(IMAGE):
            return self._number(value, IMAGE)
        return f"{self._number(uuid)}/{run}" if uuid else value

    def _number(self, name: str, kind: str = "guest-") -> str:
        numbers = self._numbers.setdefault(kind, {})
        return numbers.setdefault(name, f"{kind}{len(numbers) + 1}")
