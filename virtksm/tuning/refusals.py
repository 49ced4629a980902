"""Why the kernel refused a setting, and how long not to ask again.

libvirt reports every refusal as "failed to set shm_...: Operation not permitted", so the cause is inferred from the
other facts, the most certain first. A refused write is not repeated while its cause lasts, except once in RETRY_AFTER_S
or when an administrator asks: no error with each timer. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from virtksm.errors import REMEDIES, Cause, SettingsRefused
from virtksm.model.decision import Triggers
from virtksm.model.snapshot import MAXIMA, KsmState

RETRY_AFTER_S = 600.0


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
    return Cause.UNKNOWN


def refusal(parameter: str, value: int, found: int | None, cause: Cause) -> SettingsRefused:
    """Build the error for a setting that did not arrive."""
    return SettingsRefused(
        f"{parameter} could not be set to {value} (it is {found}; {cause.value.replace('_', ' ')})",
        parameter=parameter,
        cause=cause,
        remedy=REMEDIES[cause],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
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
