"""The checks in their order, and the outcome of one that cannot tell or does not apply. Pure.

To add one: a function from Facts to Outcome in the module of its group, and a line here (docs/reference.md lists them).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from virtksm.doctor.checks import guests, hook, kernel, libvirt, own, writers
from virtksm.doctor.facts import Facts
from virtksm.doctor.finding import CannotTell, DoesNotApply, Finding, Outcome, info, warned


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question: its stable name, and the words that people see."""

    name: str
    group: str
    what: str
    judge: Callable[[Facts], Outcome]


def _group(group: str, *checks: tuple[str, str, Callable[[Facts], Outcome]]) -> tuple[Check, ...]:
    return tuple(Check(name=name, group=group, what=what, judge=judge) for name, what, judge in checks)


CHECKS = (
    *_group(
        "kernel",
        ("ksm_built", "built with KSM", kernel.check_built),
        ("ksm_run", "KSM is switched on", kernel.check_switched_on),
        ("ksm_boot", "KSM is switched on at boot", kernel.check_stays_on),
        ("advisor", "the KSM advisor is off", kernel.check_advisor),
        ("max_page_sharing", "max_page_sharing", kernel.check_page_sharing),
        ("use_zero_pages", "merged zero pages are counted", kernel.check_zero_pages),
        ("huge_pages", "transparent huge pages", kernel.check_huge_pages),
        ("numa", "pages stay on their NUMA node", kernel.check_nodes),
    ),
    *_group(
        "memory",
        ("swap", "swap", kernel.check_swap),
        ("headroom", "room for all that is merged", kernel.check_headroom),
    ),
    *_group(
        "libvirt",
        ("libvirt_reachable", "reachable", libvirt.check_reachable),
        ("libvirt_version", "new enough", libvirt.check_version),
        ("libvirt_parameters", "offers KSM's parameters", libvirt.check_parameters),
        ("permission", "permission to set them", libvirt.check_permission),
        ("sys_writable", "its daemon may write to /sys", libvirt.check_sys_writable),
    ),
    *_group(
        "writers",
        ("ksmtuned", "no ksmtuned", writers.check_ksmtuned),
        ("tuned", "no tuned profile that sets KSM", writers.check_tuned),
        ("mom", "no MOM (oVirt, vdsm)", writers.check_mom),
        ("virt_handler", "no virt-handler (KubeVirt)", writers.check_virt_handler),
        ("node_manager", "no node-manager (Harvester)", writers.check_node_manager),
        ("ksm_throttler", "no ksm-throttler (kata)", writers.check_throttler),
        ("qemu_kvm", "qemu-kvm.service (Ubuntu) goes first", writers.check_qemu_kvm),
        ("boot", "nothing else sets KSM at boot", writers.check_boot),
    ),
    *_group(
        "hook",
        ("hook_installed", "installed", hook.check_installed),
        ("hook_executable", "executable", hook.check_executable),
        ("hook_seen", "seen by libvirt's daemon", hook.check_seen),
        ("hook_program", "has a program to start", hook.check_program),
        ("hook_confinement", "free of AppArmor and SELinux", hook.check_confinement),
    ),
    *_group(
        "guests",
        ("guests_merge", "all can merge", guests.check_can_merge),
        ("private_guests", "no private one can merge", guests.check_private),
        ("other_processes_seen", "memory of other processes is seen", guests.check_other_processes),
        ("guests_read", "memory is seen by the agent", guests.check_read),
    ),
    *_group(
        "virtksm",
        ("configuration", "configuration", own.check_configuration),
        ("switched_on", "not paused", own.check_on),
        ("agent", "agent", own.check_agent),
        ("agent_boot", "agent starts at boot", own.check_agent_boot),
        ("agent_permission", "agent's user may manage libvirt", own.check_agent_permission),
        ("stranded", "ksmd is not left scanning", own.check_stranded),
        ("folders", "runtime and state folders", own.check_folder),
    ),
)


def examine(facts: Facts) -> tuple[Finding, ...]:
    """Return the finding of every check."""
    return tuple(Finding(check=one.name, group=one.group, what=one.what, outcome=_judged(one, facts)) for one in CHECKS)


def _judged(check: Check, facts: Facts) -> Outcome:
    try:
        return check.judge(facts)
    except CannotTell as doubt:
        return warned(f"cannot tell: {doubt}", doubt.remedy)
    except DoesNotApply as reason:
        return info(str(reason))
