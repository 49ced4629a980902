"""Actuating: turns a target into the fewest libvirt calls, makes them, and reads back what the kernel took.

Only what differs is written, and only what the kernel offers. pages_to_scan goes before sleep_millisecs in one call (a
changed sleep wakes ksmd); merge_across_nodes has a call of its own, since the kernel may refuse it alone. This is the
one place that writes KSM settings, and libvirt is its only way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from virtksm.errors import Cause, SettingsRefused
from virtksm.model.snapshot import KsmState, Settings
from virtksm.tuning.ports import Hypervisor, LocalFacts
from virtksm.tuning.refusals import diagnose, refusal

Call = Mapping[str, int]


def plan(found: Settings, target: Settings) -> tuple[Call, ...]:
    """Return the calls that lead from `found` to `target`, in order; none when nothing differs.

    A parameter that was found as None is left out: it has no baseline, so it could never be given back.
    """
    changed = {name: value for name, value in target.items() if getattr(found, name) not in (None, value)}
    alone = {name: changed.pop(name) for name in ("merge_across_nodes",) if name in changed}
    return tuple(call for call in (changed, alone) if call)


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
    reported: list[Cause | None] = []
    for call in calls:
        try:
            hypervisor.set_parameters(call)
        except SettingsRefused as error:
            reported.append(error.cause)
        else:
            reported.append(None)
    after = hypervisor.ksm_state()
    refusals: list[SettingsRefused] = []
    for call, cause in zip(calls, reported, strict=True):
        missed = [(name, value) for name, value in call.items() if getattr(after.settings, name) != value]
        if not missed:
            continue
        name, value = missed[0]
        seen = _with_advisor(after, local)
        refusals.append(
            refusal(name, value, getattr(seen.settings, name), diagnose(name, value, seen, cause or Cause.UNKNOWN))
        )
    return after, tuple(refusals)


def _with_advisor(ksm: KsmState, local: LocalFacts | None) -> KsmState:
    return ksm if local is None else replace(ksm, advisor_mode=local.advisor_mode())
