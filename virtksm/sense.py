"""Sensing: one snapshot of the host from a libvirt connection and, where the host is this one, from /proc and /sys.

The host's own memory and KSM's settings and counters always come from libvirt. Guests' memory comes from their
processes where local (1 ms for 150 guests) and from libvirt otherwise (2-5 ms a guest): the snapshot says which.
Raises what the hypervisor raises, and Unsupported on a kernel without KSM; writes nothing.
"""

from __future__ import annotations

from dataclasses import replace

from virtksm.errors import Unsupported
from virtksm.model import Snapshot, Source
from virtksm.ports import Hypervisor, LocalFacts


def sense(hypervisor: Hypervisor, local: LocalFacts | None, now_s: float) -> Snapshot:
    """Read the host's state; `now_s` is CLOCK_BOOTTIME seconds, `local` None for a remote host."""
    host = hypervisor.host_memory()
    ksm = hypervisor.ksm_state()
    if not any(ksm.settings.items()):  # libvirt leaves out what /sys/kernel/mm/ksm has no file for
        raise Unsupported(
            f"the kernel of {hypervisor.uri} has no KSM",
            remedy="virtksm needs one built with CONFIG_KSM=y (grep CONFIG_KSM /boot/config-$(uname -r))",
        )
    if local is None:
        return Snapshot(taken_s=now_s, source=Source.LIBVIRT, host=host, ksm=ksm, guests=hypervisor.measured_guests())
    return Snapshot(
        taken_s=now_s,
        source=Source.LOCAL,
        host=replace(host, available_kib=local.available_kib()),
        ksm=replace(
            ksm,
            run=local.ksm_run(),
            advisor_mode=local.advisor_mode(),
            ksmd_cpu_seconds=local.ksmd_cpu_seconds(),
        ),
        guests=local.guests(hypervisor.running_guests()),
    )
