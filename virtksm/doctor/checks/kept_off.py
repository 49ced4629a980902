"""Why a host keeps KSM off, so that nothing of virtksm switches it on. Pure.

Only an administrator's declaration counts: tuned's profile, a masked ksm.service, a file that declares KSM's switch at
boot. A line of a script or a unit may run before or after; the check `boot` reports it.
"""

from __future__ import annotations

from collections.abc import Mapping

from virtksm.doctor.facts import Boot, Tuned, Unit, Unknown

KSM_UNIT = "ksm.service"
TUNED_UNIT = "tuned.service"
QEMU_KVM_UNIT = "qemu-kvm.service"
QEMU_KVM_FILE = "/etc/default/qemu-kvm"
KEPT_OFF_UNITS = (KSM_UNIT, TUNED_UNIT, QEMU_KVM_UNIT)
"""The units that are asked for."""


def find_kept_off(units: Mapping[str, Unit], tuned: Tuned | Unknown, boot: Boot) -> str | None:
    """Return what keeps KSM off, None for nothing."""
    if isinstance(tuned, Tuned) and tuned.keeps_off and is_at_work(units[TUNED_UNIT]):
        return f"tuned's profile {', '.join(tuned.profiles)} switches it off ({tuned.ksm_in})"
    if units[KSM_UNIT].is_masked:
        return f"{KSM_UNIT} is masked"
    for one in boot.settings:
        if one.name == "run" and one.value in ("0", "2") and one.is_declared and _is_read(one.file, units):
            return f"{one.file} switches it off at boot"
    return None


def is_at_work(unit: Unit) -> bool:
    """Return whether a unit runs, or will after the next boot."""
    return unit.is_running or unit.is_enabled


def _is_read(file: str, units: Mapping[str, Unit]) -> bool:
    return file != QEMU_KVM_FILE or is_at_work(units[QEMU_KVM_UNIT])
