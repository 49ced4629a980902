"""Timed steps of a scenario: what happens to guests, on a real libvirt (race) or a simulated host (sim). Pure."""

from __future__ import annotations

from dataclasses import dataclass

from demo.guests import PayloadGuest


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Start a guest, so many seconds after the scenario's beginning."""

    at_s: float
    guest: PayloadGuest


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Stop the guest of that name at once, as `virsh destroy` does."""

    at_s: float
    name: str
