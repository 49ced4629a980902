"""Actuating: turns a target into the fewest libvirt calls, makes them, and reads back what the kernel took.

Only what differs is written, and only what the kernel offers. pages_to_scan goes before sleep_millisecs in one call (a
changed sleep wakes ksmd); merge_across_nodes has a call of its own, since the kernel may refuse it alone, and so has
sleep_millisecs under the kernel's advisor, which refuses pages_to_scan. This is the one place that writes KSM settings,
and libvirt is its only way.

libvirt reports every refusal as "failed to set shm_...: Operation not permitted", so the cause is inferred from the
other facts, the most certain first. A refused write is not repeated while its cause lasts, except once in RETRY_AFTER_S
or when an administrator asks: no error with each timer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from virtksm.errors import REMEDIES, Cause, SettingsRefused
from virtksm.model.decision import Triggers
from virtksm.model.snapshot import MAXIMA, KsmState, Settings
from virtksm.tuning.ports import Hypervisor, LocalFacts
from virtksm.values import replace

Call = Mapping[str, int]
RETRY_AFTER_S = 600.0
UNMERGED = 2
"""KSM's `run` once all has been unmerged."""


def plan(found: Settings, target: Settings, *, is_advised: bool = False) -> tuple[Call, ...]:
    """Return the calls that lead from `found` to `target`, in order; none when nothing differs.

    A parameter that was found as None is left out: it has no baseline, so it could never be given back.
    """
    changed = {name: value for name, value in target.items() if getattr(found, name) not in (None, value)}
    refused = ("pages_to_scan", "merge_across_nodes") if is_advised else ("merge_across_nodes",)
    alone = [{name: changed.pop(name)} for name in refused if name in changed]
    return tuple(call for call in (changed, *alone) if call)


def unoffered(found: Settings, target: Settings) -> tuple[SettingsRefused, ...]:
    """Return a refusal for every parameter of `target` that was found as None."""
    return tuple(
        refusal(name, value, None, Cause.UNSUPPORTED) for name, value in target.items() if getattr(found, name) is None
    )


def apply(
    hypervisor: Hypervisor, local: LocalFacts | None, calls: Sequence[Call]
) -> tuple[KsmState, tuple[SettingsRefused, ...]]:
    """Make the calls; return the state read back and a refusal for every call that did not arrive whole.

    Raises LibvirtUnreachable if the connection breaks: the next pass finds out what was written.
    """
    reported: list[Cause] = []
    for call in calls:
        cause = Cause.UNKNOWN
        try:
            hypervisor.set_parameters(call)
        except SettingsRefused as error:
            cause = error.cause
        reported.append(cause)
    after = hypervisor.ksm_state()
    refusals: list[SettingsRefused] = []
    for call, cause in zip(calls, reported, strict=True):
        missed = [(name, value) for name, value in call.items() if getattr(after.settings, name) != value]
        if not missed:
            continue
        name, value = missed[0]
        seen = after if local is None else replace(after, advisor_mode=local.advisor_mode())
        refusals.append(refusal(name, value, getattr(seen.settings, name), diagnose(name, value, seen, cause)))
    return after, tuple(refusals)


def diagnose(parameter: str, value: int, ksm: KsmState, reported: Cause = Cause.UNKNOWN) -> Cause:
    """Return the likeliest cause of a refusal of `parameter` = `value`, seeing `ksm` as read after it."""
    if reported is not Cause.UNKNOWN:
        return reported
    if getattr(ksm.settings, parameter) is None:
        return Cause.UNSUPPORTED
    if not 0 <= value <= MAXIMA[parameter]:
        return Cause.OUT_OF_RANGE
    if parameter == "pages_to_scan" and ksm.advisor_is_on:
        return Cause.ADVISOR_ON
    if parameter == "merge_across_nodes" and ksm.pages_shared:
        return Cause.PAGES_SHARED
    if parameter == "merge_across_nodes" and ksm.run == UNMERGED:
        return Cause.NOT_UNMERGED
    return Cause.UNKNOWN


def refusal(parameter: str, value: int, found: int | None, cause: Cause) -> SettingsRefused:
    """Build the error for a setting that did not arrive."""
    return SettingsRefused(
        f"{parameter} could not be set to {value} (it is {found}; {cause.value.replace('_', ' ')})",
        parameter=parameter,
        cause=cause,
        remedy=REMEDIES[cause],
    )


class Refused(NamedTuple):
    """An earlier refusal."""

    value: int
    cause: Cause
    at_s: float


def still_refused(
    earlier: Mapping[str, Refused], parameter: str, value: int, ksm: KsmState, triggers: Triggers, now_s: float
) -> bool:
    """Return whether writing `parameter` now would only be refused again."""
    refused = earlier.get(parameter)
    if refused is None or triggers.is_explicit or not 0 <= now_s - refused.at_s < RETRY_AFTER_S:
        return False
    match refused.cause:
        case Cause.ADVISOR_ON:
            return ksm.advisor_is_on
        case Cause.PAGES_SHARED:
            return bool(ksm.pages_shared)
        case Cause.OUT_OF_RANGE:
            return value == refused.value
        case _:
            return True
