"""Timed steps of a scenario: what happens to guests, on a real libvirt (race) or a simulated host (sim). Pure."""

from dataclasses import dataclass

from demo.guests import PayloadGuest


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Start a guest, so many seconds after the scenario's beginning."""

    at_s: float
    guest: PayloadGuest


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """From now on the guest replaces so many of its own pages a second, in turn, by what all guests have; 0: none.

    It does not grow. A real guest is told when it starts (PayloadGuest.drift_mib).
    """

    at_s: float
    name: str
    pages_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Grow:
    """The guest fills so much more with pages of its own, at once. Only the simulator can."""

    at_s: float
    name: str
    mib: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoil:
    """From now on these guests give their common pages a new content, equal in all of them, whenever those have merged.

    `low_s` above 0: they give them back through the balloon, and fill them anew so much later. Only the simulator can.
    """

    at_s: float
    names: tuple[str, ...]
    low_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Stop the guest of that name at once, as `virsh destroy` does."""

    at_s: float
    name: str
