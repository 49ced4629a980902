"""The checks in their order, and the outcome of one that cannot tell or does not apply.

To add one: a function from Facts to Judgement in the module of its group, and a line here, which says what it judges
(docs/reference.md lists them).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from virtksm.doctor.checks import guests, hook, kernel, libvirt, memory, own, writers
from virtksm.doctor.facts import Facts
from virtksm.doctor.finding import CannotTell, DoesNotApply, Finding, Judgement, info, warned


class Check(NamedTuple):
    """One question: its stable name, and the words that people see."""

    name: str
    group: str
    what: str
    judge: Callable[[Facts], Judgement]


CHECKS = (
    Check("ksm_built", "kernel", "built with KSM", kernel.check_built),
    Check("ksm_run", "kernel", "KSM is switched on", kernel.check_switched_on),
    Check("ksm_boot", "kernel", "KSM is switched on at boot", kernel.check_stays_on),
    Check("advisor", "kernel", "the KSM advisor is off", kernel.check_advisor),
    Check("max_page_sharing", "kernel", "max_page_sharing", kernel.check_page_sharing),
    Check("use_zero_pages", "kernel", "zero pages come free, and are counted", kernel.check_zero_pages),
    Check("huge_pages", "kernel", "transparent huge pages", kernel.check_huge_pages),
    Check("numa", "kernel", "pages stay on their NUMA node", kernel.check_nodes),
    Check("swap", "memory", "swap", memory.check_swap),
    Check("headroom", "memory", "room for all that is merged", memory.check_headroom),
    Check("huge_page_pool", "memory", "pool of huge pages", memory.check_pool),
    Check("zfs_cache", "memory", "ZFS's cache (ARC)", memory.check_arc),
    Check("memory_limits", "memory", "guests may use the host's memory", memory.check_limits),
    Check("overcommit", "memory", "overcommit", memory.check_commit),
    Check("libvirt_reachable", "libvirt", "reachable", libvirt.check_reachable),
    Check("libvirt_version", "libvirt", "new enough", libvirt.check_version),
    Check("libvirt_parameters", "libvirt", "offers KSM's parameters", libvirt.check_parameters),
    Check("permission", "libvirt", "permission to set them", libvirt.check_permission),
    Check("sys_writable", "libvirt", "its daemon may write to /sys", libvirt.check_sys_writable),
    Check("ksmtuned", "writers", "no ksmtuned", writers.KSMTUNED.check),
    Check("tuned", "writers", "no tuned profile that sets KSM", writers.check_tuned),
    Check("mom", "writers", "no MOM (oVirt, vdsm)", writers.MOM.check),
    Check("virt_handler", "writers", "no virt-handler (KubeVirt)", writers.VIRT_HANDLER.check),
    Check("node_manager", "writers", "no node-manager (Harvester)", writers.NODE_MANAGER.check),
    Check("ksm_throttler", "writers", "no ksm-throttler (kata)", writers.THROTTLER.check),
    Check("qemu_kvm", "writers", "qemu-kvm.service (Ubuntu) goes first", writers.check_qemu_kvm),
    Check("boot", "writers", "nothing else sets KSM at boot", writers.check_boot),
    Check("hook_installed", "hook", "installed", hook.check_installed),
    Check("hook_executable", "hook", "executable", hook.check_executable),
    Check("hook_seen", "hook", "seen by libvirt's daemon", hook.check_seen),
    Check("hook_program", "hook", "has a program to start", hook.check_program),
    Check("hook_confinement", "hook", "free of AppArmor and SELinux", hook.check_confinement),
    Check("guests_merge", "guests", "all can merge", guests.check_can_merge),
    Check("private_guests", "guests", "no private one can merge", guests.check_private),
    Check("rewriters", "guests", "no rewriter merges", guests.check_rewriters),
    Check("groups", "guests", "groups do not share", guests.check_groups),
    Check("free_pages", "guests", "give back what they have freed", guests.check_free_pages),
    Check("other_processes_seen", "guests", "memory of other processes is seen", guests.check_other_processes),
    Check("guests_swapped", "guests", "memory is not in swap", guests.check_swapped),
    Check("guest_limits", "guests", "their own limits", guests.check_limits),
    Check("guests_read", "guests", "memory is seen by the agent", guests.check_read),
    Check("configuration", "virtksm", "configuration", own.check_configuration),
    Check("not_paused", "virtksm", "not paused", own.check_on),
    Check("agent", "virtksm", "agent", own.check_agent),
    Check("agent_boot", "virtksm", "agent starts at boot", own.check_agent_boot),
    Check("agent_permission", "virtksm", "agent's user may manage libvirt", own.check_agent_permission),
    Check("stranded", "virtksm", "ksmd is not left scanning", own.check_stranded),
    Check("folders", "virtksm", "runtime and state folders", own.check_folder),
)


def examine(facts: Facts) -> tuple[Finding, ...]:
    """Return the finding of every check."""
    return tuple(Finding(one.name, one.group, one.what, *_judged(one, facts)) for one in CHECKS)


SETTING = ("advisor", "libvirt_parameters", "permission", "sys_writable")
"""Beside those of the group `writers`, the checks of what keeps virtksm from setting KSM alone."""


def _judged(check: Check, facts: Facts) -> Judgement:
    try:
        outcome = check.judge(facts)
    except CannotTell as doubt:
        outcome = warned(f"cannot tell: {doubt}", doubt.remedy)
    except DoesNotApply as reason:
        outcome = info(str(reason))
    may_set = not facts.config.only_observes or not (check.group == "writers" or check.name in SETTING)
    return outcome if may_set or not outcome.remedy else info(f"{outcome.detail}; policy observe leaves KSM to others")
