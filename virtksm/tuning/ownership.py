"""Which settings in the kernel are ours, and what the administrator had there before: the baseline.

Rules, each parameter judged alone:
1. A value that equals what we last intended or applied is ours.
2. At the start of a tenure (an agent's first pass, every one-shot) any other value is the administrator's: it becomes
   the baseline.
3. A parameter that we never wrote cannot be taken from us: its value is the baseline, whenever it changes.
4. Any other value found later was put there by another writer: foreign. The baseline stays.
5. Restoring writes the baseline over values that are still ours, and leaves the others.
6. Values that another tuner left behind belong to no writer: they are taken for ours, over a baseline that is given.
7. Under the kernel's advisor sleep_millisecs is given back at once and is the administrator's: ksmd scans as the
   advisor says, and at our sleep it would next to never.
8. A baseline that another user may have planted counts only within plausible bounds; else the kernel's own value is
   given back.

Baseline and intention are saved before the first write, so after a crash at any point rule 1 still finds the owner of a
value. Pure: saved ownership and found values go in, the ownership to save comes out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from virtksm.model.report import Foreign
from virtksm.model.snapshot import KERNEL_DEFAULTS, MAXIMA, PARAMETERS, Settings
from virtksm.tuning.freed import Freed
from virtksm.values import EMPTY, replace

PLAUSIBLE: Mapping[str, range] = {
    "pages_to_scan": range(1_000_001),
    "sleep_millisecs": range(1, 3_600_001),
    "merge_across_nodes": range(MAXIMA["merge_across_nodes"] + 1),
}
"""Bounds a baseline that may be planted: ksmd takes 7 s for 1,000,000 pages and follows no other setting meanwhile;
without a sleep it never idles; a batch an hour is no scanning."""


class Ownership(NamedTuple):
    """One parameter's history. `applied` was confirmed by reading back; `intended` may or may not have arrived."""

    baseline: int
    intended: int | None = None
    applied: int | None = None

    @property
    def never_written(self) -> bool:
        return self.intended is None and self.applied is None

    def holds(self, value: int | None) -> bool:
        return value is not None and value in (self.intended, self.applied)


class HostState(NamedTuple):
    """All that is saved about a host between passes."""

    ownership: Mapping[str, Ownership] = EMPTY
    policy_name: str | None = None
    policy_state: Mapping[str, object] | None = None
    freed: Freed | None = None


def claim(
    saved: Mapping[str, Ownership], found: Settings, managed: Iterable[str], *, tenure_begins: bool
) -> tuple[dict[str, Ownership], tuple[Foreign, ...]]:
    """Judge each managed parameter by rules 1 to 4; return the ownership to save and what is foreign."""
    owned = dict(saved)
    foreign: list[Foreign] = []
    for parameter in managed:
        value = getattr(found, parameter)
        if value is None:
            continue
        entry = owned.get(parameter)
        if entry is None or entry.never_written or (tenure_begins and not entry.holds(value)):
            owned[parameter] = Ownership(baseline=value)
        elif not entry.holds(value):
            foreign.append(Foreign(parameter=parameter, ours=entry.applied, found=value))
    return owned, tuple(foreign)


def adopt(saved: Mapping[str, Ownership], found: Settings, baseline: Settings) -> dict[str, Ownership]:
    """Take what is found for ours wherever `baseline` has a value, which becomes the baseline (rule 6)."""
    adopted = {
        name: Ownership(baseline=value, intended=present, applied=present)
        for name, value in baseline.items()
        if (present := getattr(found, name)) is not None
    }
    return {**saved, **adopted}


def distrust(saved: Mapping[str, Ownership]) -> tuple[dict[str, Ownership], tuple[str, ...]]:
    """Put the kernel's defaults in place of implausible baselines (rule 8); return the parameters, too."""
    doubted = tuple(name for name, entry in saved.items() if entry.baseline not in PLAUSIBLE[name])
    defaults = dict(KERNEL_DEFAULTS.items())
    return {**saved, **{name: replace(saved[name], baseline=defaults[name]) for name in doubted}}, doubted


def yield_sleep(
    saved: Mapping[str, Ownership], found: Settings, target: Settings
) -> tuple[Mapping[str, Ownership], Settings]:
    """Return ownership and target under the kernel's advisor (rule 7): ours is given back, any other forgotten."""
    baseline = restoration(saved, found).sleep_millisecs
    if baseline is None:
        saved = {name: entry for name, entry in saved.items() if name != "sleep_millisecs"}
    return saved, replace(target, sleep_millisecs=baseline)


def intend(owned: Mapping[str, Ownership], values: Mapping[str, int]) -> dict[str, Ownership]:
    """Record what is about to be written."""
    return {**owned, **{name: replace(owned[name], intended=value) for name, value in values.items()}}


def confirm(owned: Mapping[str, Ownership], target: Settings, after: Settings) -> dict[str, Ownership]:
    """Record what reading back showed: a value equal to its target is applied, another one never arrived."""
    confirmed = dict(owned)
    for name, value in target.items():
        entry = confirmed.get(name)
        if entry is None:
            continue
        if getattr(after, name) == value:
            confirmed[name] = replace(entry, intended=value, applied=value)
        else:
            confirmed[name] = replace(entry, intended=entry.applied)
    return confirmed


def restoration(owned: Mapping[str, Ownership], found: Settings) -> Settings:
    """Return the baseline of every parameter that still holds our value and differs from it (rule 5)."""
    values = {
        name: entry.baseline
        for name, entry in owned.items()
        if entry.holds(getattr(found, name)) and getattr(found, name) != entry.baseline
    }
    return Settings(**{name: values.get(name) for name in PARAMETERS})
